"""Figures of the o-vectors put into novel contexts (paper Figure 5), and of the search."""

import math

import seaborn
from matplotlib.patches import Rectangle

from vecsweep.figures.drawing import (
    ANSWER,
    ARGUMENT,
    GREY,
    NO_VECTOR,
    by_cell,
    injected_tasks,
    legend,
    line_key,
    listing,
    models_of,
    number,
    patch_key,
    rank_axis,
    records,
    say_above,
    say_in_row,
    settings_of,
    too_few,
    vector_sheet,
)
from vecsweep.statistics import FEW

COLUMNS = {0.14: "n", 0.5: "top-1", 1.0: "no effect"}  # numbers beside a panel, by place


def interventions(connection):
    """The answer before and after the o-vector of one donor, in- and out-of-domain (paper Figure 5)."""
    models, tasks = models_of(connection), injected_tasks(connection)
    found = settings_of(connection)
    labels = {(task, "in", task): title for task, title in tasks.items()}
    known = {tuple(line) for _, *line in found}
    for row in records(connection, "FROM outside_names"):
        line = (row["task"], "out", row["prompts_of"])
        if line in known:
            labels[line] = f"out: {row['name']}"
    lines = sorted(labels, key=lambda line: [*tasks].index(line[0]))  # stable
    figure, panels = listing(models, [labels[line] for line in lines], COLUMNS)
    drawn = [row for row in found.values() if row["prompts"] >= FEW and row["model"] in models]
    for model, (panel, numbers) in panels.items():
        for y, (task, *prompts) in enumerate(lines):
            if list(tasks).index(task) % 2:
                panel.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
            row = found.get((model, task, *prompts))
            if row in drawn:
                draw_before_after(panel, y, row)
                shares = (f"{row['prompts']}", f"{row['top_1']:.0%}", f"{row['no_effect']:.0%}")
                for x, text in zip(COLUMNS, shares):
                    number(numbers, x, y, text)
            elif row:
                say_in_row(panel, y, too_few("n = {}", [row["prompts"]]))
            else:
                say_in_row(
                    panel, y, "no prompts" if (model, task, "in", task) in found else NO_VECTOR
                )
        rank_axis(panel.xaxis, drawn)
        if panel.get_subplotspec().is_last_row():
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


def start_layers(connection):
    """Mean reciprocal rank on dev by source layer and start layer: panels models x tasks."""
    cells = by_cell(connection, "FROM best_by_layers")
    chosen = by_cell(connection, "SELECT * FROM chosen WHERE method = 'o-vector'")
    best = {cell: max(row["value"] for row in rows) for cell, rows in cells.items()}
    figure, panels = vector_sheet(connection, cells, sharex=False, sharey=False)
    shades = {"vmin": 0, "vmax": 1, "cmap": seaborn.color_palette("mako_r", as_cmap=True)}
    for cell, panel in panels.items():
        rows = cells[cell]
        sources = sorted({row["source_layer"] for row in rows})
        starts = sorted({row["start_layer"] for row in rows})
        values = {(row["source_layer"], row["start_layer"]): row["value"] for row in rows}
        table = [[values.get((i, j), math.nan) / best[cell] for j in starts] for i in sources]
        mesh = panel.pcolormesh(table, edgecolors="white", linewidth=0.2, **shades)
        step = max(1, math.ceil(len(starts) / 8))
        panel.set_xticks([k + 0.5 for k in range(0, len(starts), step)], starts[::step])
        panel.set_yticks([k + 0.5 for k in range(len(sources))], sources)
        panel.tick_params(length=2, labelsize=6.5)
        (setting,) = chosen[cell]
        corner = (starts.index(setting["start_layer"]), sources.index(setting["source_layer"]))
        look = {"fill": False, "edgecolor": ARGUMENT, "linewidth": 1.8, "clip_on": False}
        panel.add_patch(Rectangle(corner, 1, 1, zorder=5, **look))
        say_above(panel, f"best {best[cell]:.2f}", 0)
    if panels:
        bar = figure.colorbar(
            mesh, ax=figure.axes, location="right", shrink=0.7, aspect=30, pad=0.01
        )
        bar.set_label("Mean reciprocal rank of the answer on dev,\nas a share of the panel's best")
        bar.ax.yaxis.set_major_formatter("{x:.0%}")
        bar.outline.set_visible(False)
    figure.supxlabel("Start layer: the first layer whose FFN is edited")
    figure.supylabel("Source layer: where the o-vector was cut")
    key = patch_key("chosen setting", "none", edgecolor=ARGUMENT, linewidth=1.8)
    legend(figure, [key], columns=1)
    return figure
