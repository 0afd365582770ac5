"""Figures of the ablations: accuracy with sublayers removed (paper Figure 7)."""

import itertools

from vecsweep.figures.drawing import (
    ANSWER,
    OCHRE,
    PANELS,
    band_key,
    counted,
    grid,
    legend,
    line_key,
    models_of,
    records,
    sheet,
    tasks_among,
)
from vecsweep.statistics import FEW

SETS = {
    "abstractive": {"color": ANSWER, "linestyle": "-", "marker": "o", "markersize": 3},
    "extractive": {"color": OCHRE, "linestyle": (0, (3, 1.2)), "marker": "s", "markersize": 3},
}
# (sublayer, value it is replaced by, which layers go first); the paper's kind is the first.
KINDS = {
    ("ffn", "zero", "top"): "FFNs, from the top (paper)",
    ("attention", "zero", "top"): "attention, from the top",
    ("ffn", "zero", "bottom"): "FFNs, from the bottom",
    ("ffn", "zero", "random"): "FFNs, in random order",
    ("ffn", "mean", "top"): "FFNs by their mean, from the top",
}
PAPER, *TWINS = KINDS
MISSING = "not ablated"


def counts_of(curves: dict) -> tuple[dict, dict]:
    """({cell: prompts of its larger set}, {cell: what is said of both}): one can be drawn alone."""
    counts, words = {}, {}
    for cell, sets in curves.items():
        found = {name: sets[name][0]["prompts"] for name in SETS if name in sets}
        most = max(found.values())
        few = [" (too few)" if n < FEW <= most else "" for n in found.values()]
        said = " and ".join(f"{n}{text}" for n, text in zip(found.values(), few))
        counts[cell] = [most]
        words[cell] = f"n = {said}" + "".join(f", no {name}" for name in SETS if name not in sets)
    return counts, words


def ablations(connection):
    """Accuracy against the share of FFNs removed from the top down: panels models x tasks."""
    curves = {
        (model, task): sets
        for (model, task, kind), sets in curves_of(connection).items()
        if kind == PAPER
    }
    tasks = tasks_among(connection, {task for _, task in curves}, "no task was ablated")
    figure, panels = sheet(connection, *counts_of(curves), MISSING, tasks)
    for cell, panel in panels.items():
        draw(panel, curves[cell])
    figure.supxlabel("Share of the FFNs removed, from the top layer down")
    return finished(figure, curves)


def ablation_twins(connection):
    """The same for other sublayers, orders and values: a column each kind of removal."""
    curves = {
        ((model, task), kind): sets
        for (model, task, kind), sets in curves_of(connection).items()
        if kind != PAPER
    }
    known = {task for (_, task), _ in curves}
    why = "no task was ablated in other ways than the paper's"
    pairs = itertools.product(
        tasks_among(connection, known, why).items(), models_of(connection).items()
    )
    cells = {(model, task): f"{label}: {title}" for (task, title), (model, label) in pairs}
    cells = dict([*cells.items()][: PANELS // len(TWINS)])
    figure, panels = grid(cells, {kind: KINDS[kind] for kind in TWINS}, 1.5)
    for cell, panel in counted(panels, *counts_of(curves), MISSING).items():
        draw(panel, curves[cell])
    figure.supxlabel("Share of the sublayers removed")
    return finished(figure, curves)


def finished(figure, curves: dict):
    """The figure with its axes, and a legend of the sets that there are."""
    figure.axes[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.08))
    figure.axes[0].set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_major_formatter("{x:.0%}")
    figure.supylabel("Accuracy")
    present = {name for sets in curves.values() for name in sets}
    keys = [line_key(name, **look) for name, look in SETS.items() if name in present]
    legend(figure, [*keys, band_key()])
    return figure


def draw(panel, sets: dict) -> None:
    """Accuracy of each prompt set with Wilson 95 % bands, from {prompt_set: rows by step}."""
    for name, look in SETS.items():
        if name not in sets or sets[name][0]["prompts"] < FEW:
            continue
        x, y, low, high = (
            [row[key] for row in sets[name]] for key in ("fraction", "accuracy", "low", "high")
        )
        panel.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
        panel.plot(x, y, **look)


def curves_of(connection) -> dict:
    """{(model, task, kind): {prompt_set: rows of `ablation_accuracy` by step}}."""
    found: dict = {}
    rows = records(connection, "SELECT * FROM ablation_accuracy ORDER BY prompt_set, step")
    for row in rows:
        key = (row["model"], row["task"], (row["sublayer"], row["value"], row["order"]))
        found.setdefault(key, {}).setdefault(row["prompt_set"], []).append(row)
    return found
