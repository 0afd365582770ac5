"""Figure of the linear relational embedding: faithful and causal, beside plainer maps."""

from vecsweep.figures.drawing import (
    ANSWER,
    GREY,
    PURPLE,
    by_cell,
    legend,
    line_key,
    sheet,
    tasks_among,
)

MAPS = {
    "lre": "LRE, mean Jacobian",
    "regression": "linear regression",
    "translation": "translation",
    "identity": "identity",
    "substitution": "substitution",
}
MEASURES = {
    "faithfulness": ("faithful: reads the model's answer", ANSWER, "o", -0.15),
    "causality": ("causal: brings the other prompt's answer", PURPLE, "s", 0.15),
}


def relational(connection):
    """Share of the test prompts that each map succeeds in, with its interval: models x tasks."""
    cells = by_cell(connection, "FROM relational_scores ORDER BY ALL")
    tasks = tasks_among(
        connection,
        {task for _, task in cells},
        "no task is listed under relational: tasks, or nothing could be fitted",
    )
    counts = {}
    for cell, rows in cells.items():
        found = {row["measure"]: row["prompts"] for row in rows}
        counts[cell] = tuple(found.get(measure, 0) for measure in MEASURES)
    figure, panels = sheet(
        connection, counts, "n = {} and {}", "nothing was fitted", tasks, left=1.6
    )
    axes = figure.axes[0]
    axes.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), ylim=(len(MAPS) - 0.4, -0.6))
    axes.set_yticks(range(len(MAPS)), MAPS.values())
    axes.xaxis.set_major_formatter("{x:.0%}")
    for panel in figure.axes:
        panel.tick_params(axis="y", length=0)
    for cell, panel in panels.items():
        for row in cells[cell]:
            _, colour, marker, shift = MEASURES[row["measure"]]
            y = [*MAPS].index(row["method"]) + shift
            panel.hlines(y, row["low"], row["high"], color=colour, linewidth=1.1)
            panel.plot(row["share"], y, color=colour, marker=marker, markersize=4)
            if row["measure"] == "causality" and row["method"] == "lre":
                panel.axvline(row["chance"], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    figure.supxlabel("Share of the test prompts")
    keys = [
        line_key(label, "-", colour, marker=marker, markersize=4)
        for label, colour, marker, _ in MEASURES.values()
    ]
    legend(figure, [*keys, line_key("chance, causal", ":", linewidth=0.8)], columns=3)
    return figure
