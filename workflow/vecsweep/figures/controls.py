"""Figures of the o-vector beside its controls and its parts."""

import textwrap

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    GREY,
    NO_TASK,
    NO_VECTOR,
    OCHRE,
    PURPLE,
    by_cell,
    grid,
    injected_tasks,
    legend,
    line_key,
    models_of,
    note,
    nothing,
    say_empty,
)

# Labels and colours of what was put in instead of the chosen o-vector: vectors of the same task,
# rivals that may well know the answer, and controls that must not.
OWN, RIVALS, CONTROLS = (ANSWER, "o-vectors of the task"), (PURPLE, "rivals"), (GREY, "controls")
INJECTED = {
    "o-vector": ("chosen o-vector", OWN),
    "mean": ("mean of the donors", OWN),
    "donor": ("other donors", OWN),
    "difference_once": ("difference, added once", RIVALS),
    "difference": ("difference of means", RIVALS),
    "rival": ("another task's o-vector", RIVALS),
    "unrelated": ("FFN on random words", CONTROLS),
    "zero": ("zero (FFNs dropped)", CONTROLS),
    "random": ("random, same norm", CONTROLS),
}
BY_LAYER = {
    "o-vector": {"color": ANSWER, "linestyle": "-", "linewidth": 1.8},
    "difference": {"color": PURPLE, "linestyle": "-"},
    "rival": {"color": OCHRE, "linestyle": (0, (5, 1.5))},
    "unrelated": {"color": APPLIED, "linestyle": (0, (3, 1, 1, 1))},
    "zero": {"color": "#222222", "linestyle": (0, (1, 1))},
    "random": {"color": "#8A8A8A", "linestyle": "-"},
}
BASES = {
    "neurons": ("neurons of the FFN", {"color": PURPLE, "marker": "o"}),
    "directions": ("directions over donors", {"color": APPLIED, "marker": "s"}),
}
KEPT = ("1", "10", "100", "all")


def controls(connection):
    """The chosen o-vector beside everything else that was put in its place: models x tasks."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(connection, "SELECT * FROM controls WHERE domain = 'in'")
    present = {row["control"] for rows in cells.values() for row in rows}
    shown = [name for name in INJECTED if name in present] or ["o-vector"]
    figure, panels = grid(models, tasks, 2.1, 0.35 + 0.17 * max(len(shown), 6))
    most = max((r["reciprocal_rank_after_high"] for c in cells.values() for r in c), default=1)
    axes = figure.axes[0]
    axes.set(xlim=(-0.03 * most, 1.04 * most), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [INJECTED[name][0] for name in shown])
    for cell, panel in panels.items():
        panel.tick_params(axis="y", length=0)
        if cell not in cells:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = {row["control"]: row for row in cells[cell]}
        best = rows["o-vector"]
        before, after = (best[f"reciprocal_rank_{when}"] for when in ("before", "after"))
        panel.axvline(before, color="black", linewidth=0.8, linestyle="--", zorder=1)
        if after > before:
            panel.axvline(
                (before + after) / 2, color="black", linewidth=0.8, linestyle=":", zorder=1
            )
        for y, name in enumerate(shown):
            if name not in rows:
                continue
            row, colour = rows[name], INJECTED[name][1][0]
            low, high = (row[f"reciprocal_rank_after_{end}"] for end in ("low", "high"))
            panel.hlines(y, low, high, color=colour, linewidth=1.1)
            panel.plot(row["reciprocal_rank_after"], y, color=colour, marker="o", markersize=4)
        note(panel, f"n = {best['units']}", 0.98, 0.03)
    figure.supxlabel("Mean reciprocal rank of the answer, in-domain test prompts")
    keys = [
        line_key(text, "-", colour, marker="o", markersize=4)
        for colour, text in (OWN, RIVALS, CONTROLS)
    ]
    keys += [line_key("before", "--", "black", linewidth=0.8)]
    keys += [line_key("half of the o-vector's lift", ":", "black", linewidth=0.8)]
    legend(figure, keys)
    return figure


def controls_by_layer(connection):
    """The chosen o-vector and its controls from every start layer, where the sweep has them."""
    models, tasks = models_of(connection), injected_tasks(connection)
    cells = by_cell(connection, "FROM layer_bands ORDER BY ALL")
    tasks = {task: title for task, title in tasks.items() if task in {t for _, t in cells}}
    if not tasks:
        return nothing("no task has controls at all start layers")
    chosen = by_cell(connection, "SELECT * FROM chosen")
    # One task a model is usual: the models stand side by side.
    figure, panels = grid(tasks, models, 3.2, 2.1, share=False)
    highest = 0
    for (task, model), panel in panels.items():
        cell = (model, task)
        if cell not in cells:
            panel.set(xticks=[], yticks=[])
            say_empty(panel, None, NO_VECTOR)
            continue
        rows = cells[cell]
        for name, look in BY_LAYER.items():
            some = [row for row in rows if row["control"] == name]
            if not some:
                continue
            layers, mean, low, high = (
                [row[key] for row in some] for key in ("start_layer", "after", "low", "high")
            )
            panel.fill_between(layers, low, high, color=look["color"], alpha=0.12, linewidth=0)
            panel.plot(layers, mean, label=name, **look)
            highest = max(highest, *high)
        first = next(row for row in rows if row["control"] == "o-vector")
        before = first["before"]
        panel.axhline(before, color="black", linewidth=0.8, linestyle="--", zorder=1)
        (best,) = chosen[cell]
        panel.axvline(best["start_layer"], color=OCHRE, alpha=0.3, linewidth=4, zorder=0)
        panel.locator_params(axis="x", integer=True)
        note(panel, f"n = {first['prompts']}")
    for panel in panels.values():
        panel.set_ylim(0, min(1.02, 1.15 * highest))
    figure.supxlabel("Start layer: the first layer whose FFN is replaced")
    figure.supylabel("Mean reciprocal rank of the answer, test")
    keys = [line_key(INJECTED[name][0], **look) for name, look in BY_LAYER.items()]
    keys += [line_key("before", "--", "black", linewidth=0.8)]
    keys += [line_key("chosen start layer", "-", OCHRE, alpha=0.3, linewidth=4)]
    legend(figure, keys, columns=max(2, int(figure.get_figwidth() / 1.8)))
    return figure


def parts(connection):
    """Share of the o-vector's effect that its largest parts keep, in two bases: models x tasks."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(connection, "FROM part_bands")
    figure, panels = grid(models, tasks)
    means = [0, 1]
    for cell, panel in panels.items():
        if cell not in cells:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = cells[cell]
        panel.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        found = {(row["basis"], row["k"]): row for row in rows}
        whole = found["directions", "all"]
        if whole["whole_low"] <= 0:
            say_empty(panel, None, "no effect of the\nwhole vector to keep")
            continue
        for shift, (basis, (_, look)) in zip((-0.08, 0.08), BASES.items()):
            some = {k: found[basis, k] for k in KEPT if (basis, k) in found}
            x = [KEPT.index(k) + shift for k in some]
            panel.plot(x, [row["share"] for row in some.values()], markersize=4, **look)
            for at, row in zip(x, some.values()):
                panel.vlines(at, row["low"], row["high"], color=look["color"], linewidth=0.9)
                means.append(row["share"])
        note(panel, f"n = {whole['prompts']}", 0.98, 0.03)
    # Intervals of ratios are wide where the effect is small: the means set the axis.
    axes = figure.axes[0]
    axes.set(xlim=(-0.4, 3.4), ylim=(max(-1.5, min(means)) - 0.4, min(3, max(means)) + 0.5))
    axes.set_xticks(range(len(KEPT)), KEPT)
    axes.yaxis.set_major_formatter("{x:.0%}")
    figure.supxlabel("Largest parts of the o-vector that are kept")
    figure.supylabel("Share of the lift that stays")
    keys = [line_key(label, "-", markersize=4, **look) for label, look in BASES.values()]
    keys += [line_key("the whole vector", "--"), line_key("95 % interval", "-", linewidth=0.9)]
    legend(figure, keys)
    return figure
