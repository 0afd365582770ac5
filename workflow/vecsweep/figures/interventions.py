"""Figures of the o-vectors put into novel contexts (paper Figure 5), and of the search."""

import math
import textwrap

import matplotlib.figure
import seaborn
from matplotlib.patches import Rectangle

from vecsweep.figures.drawing import (
    ANSWER,
    ARGUMENT,
    GREY,
    NO_TASK,
    NO_VECTOR,
    by_cell,
    grid,
    injected_tasks,
    legend,
    line_key,
    models_of,
    nothing,
    patch_key,
    rank_axis,
    records,
    say_empty,
    settings_of,
)

COLUMNS = {0.14: "n", 0.5: "top-1", 1.0: "no effect"}  # numbers beside a panel, by place


def interventions(connection):
    """The answer before and after the o-vector of one donor, in- and out-of-domain (paper Figure 5)."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    found = settings_of(connection)
    names = {row["task"]: row["name"] for row in records(connection, "FROM outside_names")}
    domains = {task: ["in"] for task in tasks}
    for _, task, domain in found:
        if domain == "out" and "out" not in domains[task]:
            domains[task].append("out")
    lines = [(task, domain) for task in tasks for domain in domains[task]]
    labels = [tasks[t] if d == "in" else f"out: {names[t]}" for t, d in lines]
    columns = min(2, len(models))
    down = math.ceil(len(models) / columns)
    size = (1.5 + 3.7 * columns, down * (0.6 + 0.24 * len(lines)) + 1.1)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * columns, squeeze=False, width_ratios=[2, 1] * columns)
    axes = axes.reshape(-1, 2)
    for panel in (*axes[: len(models), 1], *axes[len(models) :].flat):
        panel.set_axis_off()
    for k, (model, (panel, numbers)) in enumerate(zip(models, axes)):
        for x, text in COLUMNS.items():
            number(numbers, x, -0.8, text)
        for y, (task, domain) in enumerate(lines):
            if list(tasks).index(task) % 2:
                panel.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
            row = found.get((model, task, domain))
            if row:
                draw_before_after(panel, y, row)
                shares = (f"{row['prompts']}", f"{row['top_1']:.0%}", f"{row['no_effect']:.0%}")
                for x, text in zip(COLUMNS, shares):
                    number(numbers, x, y, text)
            else:
                text = "no prompts" if (model, task, "in") in found else NO_VECTOR
                look = {"fontsize": 6.5, "style": "italic", "color": GREY, "va": "center"}
                panel.text(0.02, y, text, transform=panel.get_yaxis_transform(), **look)
        panel.set_title(models[model], loc="left")
        rank_axis(panel.xaxis, found.values())
        for part in (panel, numbers):
            part.set_ylim(len(lines) - 0.5, -1.1)
        panel.set_yticks(range(len(lines)), labels if k % columns == 0 else [])
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        if k + columns >= len(models):
            panel.set_xlabel("Mean reciprocal rank of the answer\n(rank = 1 / mean)")
    keys = [line_key("before", "-", GREY, marker="o", markerfacecolor="white", markersize=4)]
    keys += [line_key("after, o-vector", "-", ANSWER, marker="o", markersize=4)]
    keys += [line_key("95 % interval", "-", GREY, linewidth=0.9)]
    legend(figure, keys, columns=3)
    return figure


def draw_before_after(panel, y: float, row: dict) -> None:
    """Mean reciprocal rank before and after at height y, from a row of `effects`."""
    for shift, when, colour, face in (
        (-0.15, "before", GREY, "white"),
        (0.15, "after", ANSWER, ANSWER),
    ):
        name = f"reciprocal_rank_{when}"
        panel.hlines(
            y + shift, row[f"{name}_low"], row[f"{name}_high"], color=colour, linewidth=0.9
        )
        look = {"color": colour, "marker": "o", "markersize": 4, "markerfacecolor": face}
        panel.plot(row[name], y + shift, **look)


def number(panel, x: float, y: float, text: str) -> None:
    """A cell of the numbers beside a panel, right-aligned at x."""
    panel.text(x, y, text, va="center", ha="right", fontsize=6.5, color="#333333")


def start_layers(connection):
    """Mean reciprocal rank on dev by source layer and start layer: panels models x tasks."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(connection, "FROM best_by_layers")
    chosen = by_cell(connection, "SELECT * FROM chosen WHERE method = 'o-vector'")
    figure, panels = grid(models, tasks, 2.3, 1.6, share=False)
    most = max((row["value"] for rows in cells.values() for row in rows), default=1)
    shades = {"vmin": 0, "vmax": most, "cmap": seaborn.color_palette("mako_r", as_cmap=True)}
    mesh = None
    for cell, panel in panels.items():
        if cell not in cells:
            panel.set(xticks=[], yticks=[])
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = cells[cell]
        sources = sorted({row["source_layer"] for row in rows})
        starts = sorted({row["start_layer"] for row in rows})
        values = {(row["source_layer"], row["start_layer"]): row["value"] for row in rows}
        table = [[values.get((i, j), math.nan) for j in starts] for i in sources]
        mesh = panel.pcolormesh(table, edgecolors="white", linewidth=0.2, **shades)
        step = max(1, math.ceil(len(starts) / 8))
        panel.set_xticks([k + 0.5 for k in range(0, len(starts), step)], starts[::step])
        panel.set_yticks([k + 0.5 for k in range(len(sources))], sources)
        panel.tick_params(length=2, labelsize=6.5)
        (best,) = chosen[cell]
        corner = (starts.index(best["start_layer"]), sources.index(best["source_layer"]))
        look = {
            "fill": False,
            "edgecolor": ARGUMENT,
            "linewidth": 1.8,
            "clip_on": False,
            "zorder": 5,
        }
        panel.add_patch(Rectangle(corner, 1, 1, **look))
        panel.text(
            1, 1.02, f"n = {rows[0]['prompts']}", transform=panel.transAxes, ha="right", va="bottom",
            fontsize=6.5, color=GREY,
        )  # fmt: skip
    if mesh:
        bar = figure.colorbar(
            mesh, ax=figure.axes, location="right", shrink=0.8, aspect=40, pad=0.01
        )
        bar.set_label("Mean reciprocal rank of the answer, dev")
        bar.outline.set_visible(False)
    figure.supxlabel("Start layer: the first layer whose FFN is replaced")
    figure.supylabel("Source layer: where the o-vector was cut")
    key = patch_key("chosen setting", "none", edgecolor=ARGUMENT, linewidth=1.8)
    legend(figure, [key], columns=1)
    return figure
