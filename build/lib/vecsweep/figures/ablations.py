"""Figures of the ablations: accuracy with sublayers removed (paper Figure 7)."""

from vecsweep.figures.drawing import (
    ANSWER,
    OCHRE,
    band_key,
    grid,
    legend,
    line_key,
    models_of,
    note,
    nothing,
    records,
    say_empty,
    tasks_of,
)

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
PAPER = next(iter(KINDS))
EMPTY = "no task was ablated"


def ablations(connection):
    """Accuracy against the share of FFNs removed from the top down: panels models x tasks."""
    curves = curves_of(connection)
    known = {task for _, task, kind in curves if kind == PAPER}
    tasks = {task: title for task, title in tasks_of(connection).items() if task in known}
    if not tasks:
        return nothing(EMPTY)
    figure, panels = grid(models_of(connection), tasks)
    for (model, task), panel in panels.items():
        draw(panel, curves.get((model, task, PAPER)))
    figure.supxlabel("Share of the FFNs removed, from the top layer down")
    return finished(figure)


def ablation_twins(connection):
    """The same for other sublayers, orders and values: a column each kind of removal."""
    curves = curves_of(connection)
    known = {task for _, task, kind in curves if kind != PAPER}
    tasks = {task: title for task, title in tasks_of(connection).items() if task in known}
    if not tasks:
        return nothing(
            EMPTY if not curves else "no task was ablated in other ways than the paper's"
        )
    names = {(t, k): f"{title}: {name}" for t, title in tasks.items() for k, name in KINDS.items()}
    figure, panels = grid(models_of(connection), names, columns=len(KINDS))
    for (model, (task, kind)), panel in panels.items():
        draw(panel, curves.get((model, task, kind)))
    figure.supxlabel("Share of the sublayers removed")
    return finished(figure)


def finished(figure):
    """The figure with its axes and legend."""
    figure.axes[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.08))
    figure.axes[0].set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_major_formatter("{x:.0%}")
    figure.supylabel("Accuracy")
    legend(figure, [*(line_key(name, **look) for name, look in SETS.items()), band_key()])
    return figure


def draw(panel, sets: dict | None) -> None:
    """Accuracy of each prompt set with Wilson 95 % bands, from {prompt_set: rows by step}."""
    if not sets:
        say_empty(panel, None, "not ablated")
        return
    for name, look in SETS.items():
        rows = sets.get(name, [])
        x, y, low, high = (
            [row[key] for row in rows] for key in ("fraction", "accuracy", "low", "high")
        )
        panel.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
        panel.plot(x, y, **look)
    counts = [rows[0]["prompts"] for rows in sets.values()]
    same = len(set(counts)) == 1 < len(counts)
    note(panel, f"n = {counts[0]} each" if same else f"n = {', '.join(map(str, counts))}", 0.98)


def curves_of(connection) -> dict:
    """{(model, task, kind): {prompt_set: rows of `ablation_accuracy` by step}}."""
    found: dict = {}
    rows = records(connection, "SELECT * FROM ablation_accuracy ORDER BY prompt_set, step")
    for row in rows:
        key = (row["model"], row["task"], (row["sublayer"], row["value"], row["order"]))
        found.setdefault(key, {}).setdefault(row["prompt_set"], []).append(row)
    return found
