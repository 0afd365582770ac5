"""Figure of the patterns, and of the sublayers that applied the function."""

import math

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
    tasks_of,
)

PATTERNS = {
    "argument_function": ("argument, then function", APPLIED),
    "direct": ("direct", PALE),
    "incorrect": ("incorrect", NEUTRAL),
}
APPLIERS = {
    "by_ffn": ("FFN", PURPLE),
    "by_attention": ("attention", OCHRE),
    "by_both_or_joint": ("both or jointly", NEUTRAL),
}


def patterns(connection):
    """Shares of the patterns, and of the sublayer that applied the function, by model and task."""
    models, tasks = models_of(connection), tasks_of(connection)
    rows = records(connection, "FROM pattern_shares WHERE prompt_set = 'abstractive'")
    rows = {(row["model"], row["task"]): row for row in rows}
    pairs = 1 if len(models) <= 3 else 2
    down = math.ceil(len(models) / pairs)
    size = (7.2 * pairs, down * (0.55 + 0.2 * len(tasks)) + 0.9)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * pairs, squeeze=False).reshape(-1, 2)
    for pair in axes[len(models) :]:
        for panel in pair:
            panel.set_axis_off()
    for (model, label), pair in zip(models.items(), axes):
        for panel, parts in zip(pair, (PATTERNS, APPLIERS)):
            for y, task in enumerate(tasks):
                draw_shares(panel, y, rows.get((model, task)), parts)
            panel.set(xlim=(0, 1), ylim=(len(tasks) - 0.5, -0.5), xticks=(0, 0.25, 0.5, 0.75, 1))
            panel.xaxis.set_major_formatter("{x:.0%}")
            panel.set_yticks(range(len(tasks)), tasks.values() if panel is pair[0] else [])
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
        pair[0].set_title(label, loc="left")
    for pair in axes[max(0, len(models) - pairs) : len(models)]:
        pair[0].set_xlabel("Share of all prompts")
        pair[1].set_xlabel("Share of the prompts answered correctly")
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
    panel.text(1.02, y, f"n = {count}", va="center", fontsize=6.5, color=GREY)
    if not count:
        text = "no prompts" if not row["prompts"] else "none answered correctly"
        panel.text(0.01, y, text, va="center", fontsize=6.5, style="italic", color=GREY)
        return
    left = 0
    for column, (_, colour) in parts.items():
        panel.barh(y, row[column], 0.74, left, color=colour, edgecolor="white", linewidth=0.5)
        left += row[column]
    first = next(iter(parts))
    look = {"color": "black", "linewidth": 0.8, "marker": "|", "markersize": 4, "zorder": 3}
    panel.plot([row[f"{first}_low"], row[f"{first}_high"]], [y, y], **look)


def interval_key():
    return line_key("95 % interval of the first share", "-", "black", linewidth=0.8)
