"""Figures of reciprocal rank by depth, and where the curves cross (paper Figures 2, 3, Appendix A)."""

from collections import Counter

import matplotlib.figure
import seaborn

from vecsweep.figures.drawing import (
    ANSWER,
    ARGUMENT,
    GREY,
    Empty,
    band_key,
    legend,
    line_key,
    models_of,
    prompt_counts,
    records,
    sheet,
    tasks_among,
    tasks_of,
)

# The paper's "about 2/3 of the depth" (section 5).
PAPER_DEPTH = 2 / 3
ROWS = 16  # tasks in a figure of one panel


def reciprocal_rank(connection):
    """Reciprocal rank of argument and answer by depth: panels models x tasks (paper Figs 2, 3)."""
    counts = prompt_counts(connection, "abstractive")
    figure, panels = sheet(connection, counts, "n = {} of {}")
    curves = curves_of(connection, "abstractive")
    crossings = crossings_of(connection)
    for cell, panel in panels.items():
        draw_curves(panel, curves[cell])
        if cell in crossings:
            look = {"color": GREY, "linewidth": 0.8, "linestyle": ":", "zorder": 0}
            panel.axvline(crossings[cell]["depth"], **look)
    label_depth(figure)
    keys = [line_key("crossover", ":")] * any(cell in crossings for cell in panels)
    legend(figure, [*target_keys(), band_key(), *keys])
    return figure


def extractive(connection):
    """Abstractive and extractive prompts, answer and argument by depth (paper Appendix A)."""
    lines = {"abstractive": "-", "extractive": (0, (3, 1.2))}
    counts = {name: prompt_counts(connection, name) for name in lines}
    one, other = counts.values()
    both = {cell: (one[cell][0], other[cell][0]) for cell in one if cell in other}
    known = {task for _, task in both}
    tasks = tasks_among(connection, known, "no task has extractive prompts")
    figure, panels = sheet(connection, both, "n = {} and {}", tasks=tasks)
    for name, line in lines.items():
        curves = curves_of(connection, name)
        for cell, panel in panels.items():
            draw_curves(panel, curves[cell], line, alpha=0.12)
    label_depth(figure)
    keys = [line_key(name, line) for name, line in lines.items()]
    legend(figure, [*target_keys(), *keys, band_key()])
    return figure


def crossover(connection):
    """Depth of the crossover: a row each task, a mark each model (paper section 5)."""
    models = models_of(connection, most=10)
    tasks = tasks_of(connection)
    found = {cell: row for cell, row in crossings_of(connection).items() if cell[0] in models}
    if not found:
        raise Empty("nowhere did the answer overtake an argument that had formed")
    marks = Counter(task for _, task in found)
    first = sorted(filter(marks.get, tasks), key=lambda task: -marks[task])  # a stable sort
    shown = [task for task in tasks if task in first[:ROWS]]
    apart = 0.7 / len(models)  # models of one task stand side by side
    line = 0.2 + 0.06 * len(models)  # inches
    figure = matplotlib.figure.Figure(
        figsize=(7.2, max(line * len(shown) + 0.9, 0.19 * len(models) + 0.8)), layout="constrained"
    )
    panel = figure.subplots()
    shades = seaborn.color_palette("viridis", len(models) + 1)  # the last is faint on white
    keys = []
    for k, (model, label) in enumerate(models.items()):
        look = {"color": shades[k], "marker": "osD^vP"[k % 6], "markersize": 4.5}
        for y, task in enumerate(shown):
            if row := found.get((model, task)):
                at = y + apart * (k - (len(models) - 1) / 2)
                ends = [row["low"], row["high"]]
                panel.plot(ends, [at, at], color=shades[k], linewidth=1.1, marker="|", markersize=7)
                panel.plot(row["depth"], at, **look)
        keys.append(line_key(label, "-", linewidth=1.1, **look))
    for y in range(0, len(shown), 2):
        panel.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=-1)
    panel.axvline(PAPER_DEPTH, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    panel.set(xlim=(0, 1.01), ylim=(len(shown) - 0.5, -0.5))
    panel.set_xlabel("Depth of the crossover, (layer + 1) / layers")
    panel.set_yticks(range(len(shown)), [tasks[task] for task in shown])
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    keys.append(line_key("95 % interval", "-", linewidth=1.1))
    keys.append(line_key("the paper's 2/3", "--"))
    figure.legend(handles=keys, loc="outside right center")
    return figure


def draw_curves(panel, curves, line="-", alpha=0.2) -> None:
    """Mean reciprocal rank by depth with 95 % bands, from rows of table `curves`."""
    for target, colour in (("argument", ARGUMENT), ("answer", ANSWER)):
        rows = curves[curves.target == target]
        panel.fill_between(rows.depth, rows.low, rows.high, color=colour, alpha=alpha, linewidth=0)
        panel.plot(rows.depth, rows.reciprocal_rank, color=colour, linestyle=line)


def label_depth(figure) -> None:
    """The axes of panels of mean reciprocal rank by depth."""
    figure.axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.supxlabel("Depth, (layer + 1) / layers")
    figure.supylabel("Mean reciprocal rank")


def curves_of(connection, prompt_set: str) -> dict:
    """{(model, task): rows of `curves` by layer}, prompts answered correctly."""
    query = """SELECT * FROM curves WHERE subset = 'correct' AND prompt_set = ?
               ORDER BY model, task, target, layer"""
    table = connection.execute(query, [prompt_set]).df()
    return dict(list(table.groupby(["model", "task"])))


def crossings_of(connection) -> dict:
    """{(model, task): row of `crossings`} where an argument that had formed is overtaken."""
    query = """SELECT * REPLACE (coalesce(low, 0) AS low, coalesce(high, 1) AS high)
               FROM crossings
               WHERE prompt_set = 'abstractive' AND has_formed(formed)
               ORDER BY parameters, model, task"""
    return {(row["model"], row["task"]): row for row in records(connection, query)}


def target_keys():
    return [line_key("argument", "-", ARGUMENT), line_key("answer", "-", ANSWER)]
