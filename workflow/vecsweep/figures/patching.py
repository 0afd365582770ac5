"""Figure of activation patching: which layer's state or update, at which token, carries the answer."""

import numpy as np

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    GREY,
    PURPLE,
    band_key,
    by_cell,
    legend,
    line_key,
    sheet,
    tasks_among,
)

PARTS = {
    "state": ("state after the block", ANSWER),
    "ffn": ("FFN's update", APPLIED),
    "attention": ("attention's update", PURPLE),
}
TOKENS = {"last": ("last token", "-"), "argument": ("argument's last token", (0, (3, 1.2)))}


def patching(connection):
    """Share of the source's answer that is restored, by depth: panels models x tasks."""
    cells = by_cell(connection, "FROM patching_shares ORDER BY layer")
    tasks = tasks_among(
        connection,
        {task for _, task in cells},
        "no task is listed under patching: tasks, or no prompts could be patched",
    )
    counts = {cell: (rows[0]["pairs"],) for cell, rows in cells.items()}
    figure, panels = sheet(connection, counts, "n = {} pairs", "no pairs", tasks)
    for cell, panel in panels.items():
        for end in (0, 1):
            panel.axhline(end, color=GREY, linewidth=0.6, zorder=0)
        for part, (_, color) in PARTS.items():
            for token, (_, style) in TOKENS.items():
                mine = [r for r in cells[cell] if (r["sublayer"], r["position"]) == (part, token)]
                depth, low, high, mean = (
                    np.array([row[key] for row in mine], float)  # no band is nan
                    for key in ("depth", "low", "high", "restored")
                )
                panel.fill_between(depth, low, high, color=color, alpha=0.18, linewidth=0)
                panel.plot(depth, mean, color=color, linestyle=style)
    figure.axes[0].set(xlim=(0, 1.02), xticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.supxlabel("Depth, (layer + 1) / layers")
    figure.supylabel("Source's answer restored")
    keys = [line_key(name, "-", color) for name, color in PARTS.values()]
    keys += [line_key(name, style) for name, style in TOKENS.values()]
    legend(figure, [*keys, band_key()], columns=3)
    return figure
