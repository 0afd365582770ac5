"""Figure of the attention heads: what each adds to the answer, and which the function vector is of."""

import numpy as np

from vecsweep.figures.drawing import Empty, by_cell, legend, line_key, sheet, tasks_among

WHY = "no task's function vectors were asked for, or none could be made"


def heads(connection):
    """Effect of every head, layers from left to right: models x tasks."""
    cells = by_cell(connection, "FROM heads ORDER BY ALL")
    if not cells:
        raise Empty(WHY)
    tasks = tasks_among(connection, {task for _, task in cells}, WHY)
    counts = {cell: (rows[0]["prompts"],) for cell, rows in cells.items()}
    figure, panels = sheet(
        connection, counts, missing="no function vector", tasks=tasks, sharex=False, sharey=False
    )
    most = max((abs(r["effect"]) for cell in panels for r in cells[cell]), default=1) or 1
    for cell, panel in panels.items():
        rows = cells[cell]
        size = max(r["head"] for r in rows) + 1, max(r["layer"] for r in rows) + 1
        values = np.zeros(size)
        for row in rows:
            values[row["head"], row["layer"]] = row["effect"]
        drawn = panel.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        chosen = [(row["layer"], row["head"]) for row in rows if row["chosen"]]
        panel.plot(*zip(*chosen), "s", markersize=4, markerfacecolor="none", color="black")
        panel.locator_params(axis="both", integer=True, nbins=5)
    if panels:
        bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.7, pad=0.01)
        bar.set_label("Rise of the answer's probability")
        bar.outline.set_visible(False)
    figure.supxlabel("Layer")
    figure.supylabel("Attention head")
    look = {"marker": "s", "markersize": 4, "markerfacecolor": "none"}
    legend(figure, [line_key("the function vector is made of it", "none", "black", **look)])
    return figure
