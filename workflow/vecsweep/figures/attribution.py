"""Figure of direct logit attribution: what each layer adds to the answer over the argument."""

from vecsweep.figures.drawing import (
    APPLIED,
    GREY,
    PURPLE,
    band_key,
    by_cell,
    grid,
    legend,
    line_key,
    models_of,
    note,
    say_empty,
    tasks_of,
)

PARTS = {
    "ffn": ("FFN", {"color": APPLIED, "linestyle": "-"}),
    "attention": ("attention", {"color": PURPLE, "linestyle": (0, (3, 1.2))}),
}


def attribution(connection):
    """Contributions in logits by depth: panels models x tasks, a scale for each model."""
    query = """FROM attribution_shares
               WHERE prompt_set = 'abstractive' AND layer IS NOT NULL ORDER BY layer"""
    cells = by_cell(connection, query)
    counts = by_cell(connection, "FROM correct_counts WHERE prompt_set = 'abstractive'")
    figure, panels = grid(models_of(connection), tasks_of(connection), share="row")
    for cell, panel in panels.items():
        panel.set(xlim=(0, 1.02), xticks=(0, 0.5, 1))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        if cell not in cells:
            say_empty(panel, counts[cell][0]["prompts"] if cell in counts else 0)
            continue
        draw(panel, cells[cell])
        note(panel, f"n = {cells[cell][0]['prompts']}")
    figure.supxlabel("Depth, (layer + 1) / layers")
    figure.supylabel("Added to logit(answer) \u2212 logit(argument)")
    legend(figure, [*(line_key(name, **look) for name, look in PARTS.values()), band_key()])
    return figure


def draw(panel, rows: list[dict]) -> None:
    """A line with its band for each sublayer, from rows of `attribution_shares` by layer."""
    for part, (_, look) in PARTS.items():
        mine = [row for row in rows if row["sublayer"] == part]
        depth, low, high, mean = (
            [row[key] for row in mine] for key in ("depth", "low", "high", "contribution")
        )
        panel.fill_between(depth, low, high, color=look["color"], alpha=0.2, linewidth=0)
        panel.plot(depth, mean, **look)
