"""Figure of the tuned lens: argument and answer by depth as it reads them, beside the plain lens."""

from vecsweep.figures.curves import draw_curves, label_depth, target_keys
from vecsweep.figures.drawing import (
    GREY,
    band_key,
    legend,
    line_key,
    records,
    sheet,
    tasks_among,
)

LINES = {"plain": (0, (3, 1.2)), "tuned": "-"}
NOT_TUNED = "no task is listed under tuned: tasks"


def tuned(connection):
    """Reciprocal rank by depth by both lenses, the same prompts: panels models x tasks."""
    rows = records(connection, "FROM tuned_counts")
    counts = {(row["model"], row["task"]): (row["correct"], row["prompts"]) for row in rows}
    tasks = tasks_among(connection, {task for _, task in counts}, NOT_TUNED)
    figure, panels = sheet(connection, counts, "n = {} of {}", missing="not read", tasks=tasks)
    table = connection.execute("FROM tuned_curves ORDER BY model, task, lens, target, layer").df()
    curves = dict(list(table.groupby(["model", "task", "lens"])))
    for cell, panel in panels.items():
        for lens, line in LINES.items():
            draw_curves(panel, curves[*cell, lens], line, alpha=0.12)
    for row in records(connection, "FROM tuned_lens WHERE lens = 'tuned' AND has_formed(formed)"):
        if panel := panels.get((row["model"], row["task"])):
            look = {"color": GREY, "linewidth": 0.8, "linestyle": ":", "zorder": 0}
            panel.axvline(row["depth"], **look)
    label_depth(figure)
    keys = [line_key(f"{lens} lens", line) for lens, line in LINES.items()]
    crossover = line_key("crossover, tuned lens", ":")
    legend(figure, [*target_keys(), *keys, crossover, band_key()])
    return figure
