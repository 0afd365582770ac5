"""Figure of direct logit attribution: what each layer adds to the answer over the argument."""

from vecsweep.figures.drawing import (
    APPLIED,
    GREY,
    PURPLE,
    band_key,
    by_cell,
    legend,
    line_key,
    prompt_counts,
    sheet,
)

PARTS = {
    "ffn": ("FFN", {"color": APPLIED, "linestyle": "-"}),
    "attention": ("attention", {"color": PURPLE, "linestyle": (0, (3, 1.2))}),
}


def attribution(connection):
    """Contributions in logits by depth: panels models x tasks, each with a scale of its own."""
    query = """FROM attribution_shares
               WHERE prompt_set = 'abstractive' AND layer IS NOT NULL ORDER BY layer"""
    cells = by_cell(connection, query)
    counts = prompt_counts(connection, "abstractive")
    figure, panels = sheet(connection, counts, "n = {} of {}", sharey=False)
    for cell, panel in panels.items():
        panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        panel.locator_params(axis="y", nbins=5)
        draw(panel, cells[cell])
    figure.axes[0].set(xlim=(0, 1.02), xticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
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
