"""Figure of the patterns, and of the sublayers that applied the function."""

import textwrap

import matplotlib.figure

from vecsweep.figures.drawing import (
    APPLIED,
    GREY,
    NEUTRAL,
    OCHRE,
    PALE,
    PURPLE,
    legend,
    line_key,
    models_of,
    patch_key,
    records,
    say_in_row,
    tasks_of,
    too_few,
)
from vecsweep.statistics import FEW

PATTERNS = {
    "argument_function": ("argument, then function", OCHRE),
    "direct": ("direct", PALE),
    "incorrect": ("incorrect", NEUTRAL),
}
APPLIERS = {
    "by_ffn": ("FFN", APPLIED),
    "by_attention": ("attention", PURPLE),
    "by_both_or_joint": ("both or jointly", GREY),
}


def patterns(connection):
    """Shares of the patterns, and of the sublayer that applied the function, by model and task."""
    models, tasks = models_of(connection), tasks_of(connection)
    rows = records(connection, "FROM pattern_shares WHERE prompt_set = 'abstractive'")
    rows = {(row["model"], row["task"]): row for row in rows}
    few = len(models) <= 2  # a pair of panels in a row each, else a column each
    shape = (len(models), 2) if few else (2, len(models))
    size = (7.2, shape[0] * (0.55 + (0.2 if few else 0.17) * len(tasks)) + 0.9)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    pairs = dict(zip(models, axes if few else axes.T))
    for model, pair in pairs.items():
        for panel, parts in zip(pair, (PATTERNS, APPLIERS)):
            for y, task in enumerate(tasks):
                draw_shares(panel, y, rows.get((model, task)), parts)
            panel.set(xlim=(0, 1), ylim=(len(tasks) - 0.5, -0.5))
            panel.set_xticks((0, 0.25, 0.5, 0.75, 1) if few else (0, 0.5, 1))
            panel.xaxis.set_major_formatter("{x:.0%}")
            first = panel.get_subplotspec().is_first_col()
            panel.set_yticks(range(len(tasks)), tasks.values() if first else [])
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
        pair[0].set_title(models[model] if few else textwrap.fill(models[model], 18), loc="left")
        if model == [*models][-1] or not few:
            pair[0].set_xlabel("Share of all prompts")
            words = "Share of the prompts answered correctly"
            pair[1].set_xlabel(words if few else textwrap.fill(words, 22))
    # A legend fills its columns first: the patterns make its first row, the sublayers its second.
    keys = [patch_key("Pattern:", "none"), patch_key("Applied by:", "none")]
    for both in zip(PATTERNS.values(), APPLIERS.values()):
        keys += [patch_key(*part) for part in both]
    legend(figure, [*keys, interval_key()], columns=5)
    return figure


def draw_shares(panel, y: int, row: dict | None, parts: dict) -> None:
    """A stacked bar of shares at height y, with a 95 % interval of the first share."""
    row = (row or {"prompts": 0, "correct": 0}) | {}
    row["incorrect"] = 1 - row["correct"]
    count = row["prompts"] if parts is PATTERNS else round(row["prompts"] * row["correct"])
    if count < FEW:
        say_in_row(panel, y, too_few("n = {}", [count]))
        return
    panel.text(1.02, y, f"n = {count}", va="center", fontsize=6.5, color=GREY)
    left = 0
    for column, (_, colour) in parts.items():
        panel.barh(y, row[column], 0.74, left, color=colour, edgecolor="white", linewidth=0.5)
        left += row[column]
    first = next(iter(parts))
    look = {"color": "black", "linewidth": 0.8, "marker": "|", "markersize": 4, "zorder": 3}
    panel.plot([row[f"{first}_low"], row[f"{first}_high"]], [y, y], **look)


def interval_key():
    return line_key("95 % interval of the first share", "-", "black", linewidth=0.8)
