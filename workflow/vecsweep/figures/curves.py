"""Figures of reciprocal rank by depth, and where the curves cross (paper Figures 2, 3, Appendix A)."""

import math

import matplotlib.figure

from vecsweep.figures.drawing import (
    ANSWER,
    ARGUMENT,
    FEW_PROMPTS,
    GREY,
    band_key,
    grid,
    in_words,
    legend,
    line_key,
    models_of,
    note,
    records,
    say_empty,
    task_look,
    tasks_of,
)

# The paper's "about 2/3 of the depth" (section 5).
PAPER_DEPTH = 2 / 3


def reciprocal_rank(connection):
    """Reciprocal rank of argument and answer by depth: panels models x tasks (paper Figs 2, 3)."""
    figure, panels = depth_grid(models_of(connection), tasks_of(connection))
    counts = prompt_counts(connection, "abstractive")
    curves = curves_of(connection, "abstractive")
    crossings = crossings_of(connection)
    for cell, panel in panels.items():
        correct, count = counts.get(cell, (0, 0))
        if cell not in curves:
            say_empty(panel, count)
            continue
        draw_curves(panel, curves[cell])
        if cell in crossings:
            panel.axvline(
                crossings[cell]["depth"], color=GREY, linewidth=0.8, linestyle=":", zorder=0
            )
        note(panel, f"n = {correct} of {count}")
    legend(figure, [*target_keys(), band_key(), line_key("crossover", ":")])
    return figure


def extractive(connection):
    """Abstractive and extractive prompts, answer and argument by depth (paper Appendix A)."""
    lines = {"abstractive": "-", "extractive": (0, (3, 1.2))}
    counts = {name: prompt_counts(connection, name) for name in lines}
    curves = {name: curves_of(connection, name) for name in lines}
    both = {task for _, task in counts["abstractive"].keys() & counts["extractive"].keys()}
    tasks = {task: title for task, title in tasks_of(connection).items() if task in both}
    figure, panels = depth_grid(models_of(connection), tasks)
    if not tasks:
        say_empty(figure.axes[0], None, "no task has extractive prompts")
    for cell, panel in panels.items():
        drawn = [name for name in lines if cell in curves[name]]
        for name in drawn:
            draw_curves(panel, curves[name][cell], lines[name], alpha=0.12)
        if drawn:
            numbers = [f"{name} n = {counts[name].get(cell, (0,))[0]}" for name in lines]
            note(panel, "\n".join(numbers))
        else:
            say_empty(panel, counts["abstractive"].get(cell, (0, 0))[1])
    keys = [line_key(name, line) for name, line in lines.items()]
    legend(figure, [*target_keys(), *keys, band_key()])
    return figure


def crossover(connection):
    """Depth of the crossover against model size, a marker each task (paper section 5)."""
    tasks = tasks_of(connection)
    sizes = dict(connection.execute("SELECT model, parameters FROM models").fetchall())
    found = list(crossings_of(connection).values())
    shown = [task for task in tasks if task in {row["task"] for row in found}]
    wide = max(6.4, 3 + 0.1 * len(sizes) * len(shown))
    high = 3.2 + 0.05 * max(map(len, sizes))
    figure = matplotlib.figure.Figure(figsize=(wide, high), layout="constrained")
    panel = figure.subplots()
    low, high = min(sizes.values()) / 1.6, max(sizes.values()) * 1.6
    panel.set(xscale="log", xlim=(low, high), ylim=(0, 1.04), xlabel="Parameters of the model")
    # Tasks stand side by side, or they would hide each other: this far apart, in decades.
    apart = min(0.02, 0.7 * math.log10(high / low) / len(sizes) / max(len(shown), 1))
    keys = []
    for k, task in enumerate(shown):
        look = task_look(k)
        shift = 10 ** (apart * (k - (len(shown) - 1) / 2))
        for row in (row for row in found if row["task"] == task):
            at = row["parameters"] * shift
            panel.vlines(at, row["low"], row["high"], color=look["color"], linewidth=0.9)
            few = {"markerfacecolor": "white"} if row["prompts"] < FEW_PROMPTS else {}
            panel.plot(at, row["depth"], **look, **few)
        keys.append(line_key(tasks[task], "none", **look))
    panel.axhline(PAPER_DEPTH, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    panel.set_ylabel("Depth of the crossover\n(layer + 1) / layers")
    parameter_ticks(panel)
    name_models(panel, sizes)
    if not found:
        say_empty(panel, None, "nowhere did the answer overtake an argument that had formed")
    if any(row["prompts"] < FEW_PROMPTS for row in found):
        look = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
        keys.append(line_key(f"n < {FEW_PROMPTS}", "none", **look))
    keys.append(line_key("the paper's 2/3", "--"))
    figure.legend(handles=keys, loc="outside right center")
    return figure


def draw_curves(panel, curves, line="-", alpha=0.2) -> None:
    """Mean reciprocal rank by depth with 95 % bands, from rows of table `curves`."""
    for target, colour in (("argument", ARGUMENT), ("answer", ANSWER)):
        rows = curves[curves.target == target]
        panel.fill_between(rows.depth, rows.low, rows.high, color=colour, alpha=alpha, linewidth=0)
        panel.plot(rows.depth, rows.reciprocal_rank, color=colour, linestyle=line)


def depth_grid(models: dict, tasks: dict):
    """Panels models x tasks of mean reciprocal rank by depth."""
    figure, panels = grid(models, tasks)
    figure.axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.supxlabel("Depth, (layer + 1) / layers")
    figure.supylabel("Mean reciprocal rank")
    return figure, panels


def prompt_counts(connection, prompt_set: str) -> dict:
    """{(model, task): (prompts answered correctly, prompts)}."""
    rows = records(connection, "FROM correct_counts WHERE prompt_set = ?", [prompt_set])
    return {(row["model"], row["task"]): (row["correct"], row["prompts"]) for row in rows}


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


def parameter_ticks(panel) -> None:
    """Ticks 100 M, 200 M, 500 M, 1 B ... on a log axis of parameters."""
    low, high = panel.get_xlim()
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10**decade for decade in range(15) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    panel.set_xticks(ticks, [in_words(tick) for tick in ticks])
    panel.set_xticks([], minor=True)


def name_models(panel, sizes: dict) -> None:
    """Names of models above the panel, apart from each other, a thin line to each one's size."""
    low, high = (math.log(x) for x in panel.get_xlim())
    order = sorted(sizes, key=lambda model: (sizes[model], model))
    true = [(math.log(sizes[model]) - low) / (high - low) for model in order]
    places = spread(true, 0.045)
    for model, at, place in zip(order, true, places):
        look = {"color": GREY, "linewidth": 0.6, "clip_on": False}
        panel.axvline(sizes[model], color="#E8E8E8", linewidth=0.6, zorder=0)
        panel.plot([at, place], [1, 1.05], transform=panel.transAxes, **look)
        panel.text(
            place, 1.06, model, rotation=45, ha="left", va="bottom", rotation_mode="anchor",
            transform=panel.transAxes, fontsize=6.5, parse_math=False,
        )  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Sorted places moved as little as needed to stand `gap` apart."""
    moved = list(places)
    for _ in range(200):
        for k in range(len(moved) - 1):
            lack = gap - (moved[k + 1] - moved[k])
            if lack > 0:
                moved[k] -= lack / 2
                moved[k + 1] += lack / 2
    return moved


def target_keys():
    return [line_key("argument", "-", ARGUMENT), line_key("answer", "-", ANSWER)]
