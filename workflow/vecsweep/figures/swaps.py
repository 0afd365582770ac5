"""Figure of the exchanges: whose answer is on top when prompts trade a part of one layer."""

from vecsweep.figures.drawing import (
    ANSWER,
    GREY,
    OCHRE,
    band_key,
    by_cell,
    grid,
    legend,
    line_key,
    models_of,
    note,
    nothing,
    patch_key,
    say_empty,
    tasks_of,
)

PARTS = {"ffn": "FFN", "attention": "attention", "state": "state"}
WHOSE = {
    "own": ("its own answer", {"color": ANSWER, "linestyle": "-"}),
    "others": ("the other's answer", {"color": OCHRE, "linestyle": (0, (3, 1.2))}),
}
DROPPED = {"color": "#222222", "linestyle": (0, (1, 1)), "linewidth": 0.9}
BAR = {"color": "#EDEDED", "edgecolor": GREY, "linewidth": 0.5}  # unlike a band


def swaps(connection):
    """Shares of own and other's answers by depth: panels models x tasks x exchanged part."""
    cells = by_cell(connection, "FROM swap_shares ORDER BY layer")
    known = {task for _, task in cells}
    tasks = {task: title for task, title in tasks_of(connection).items() if task in known}
    if not tasks:
        return nothing("no prompts exchanged anything")
    names = {(t, p): f"{title}: {name}" for t, title in tasks.items() for p, name in PARTS.items()}
    figure, panels = grid(models_of(connection), names, columns=len(PARTS))
    for (model, (task, part)), panel in panels.items():
        rows = [row for row in cells.get((model, task), []) if row["sublayer"] == part]
        if rows:
            draw(panel, rows)
        else:
            say_empty(panel, None, "too few prompts\nanswered correctly")
    figure.axes[0].set(xlim=(0, 1.02), ylim=(-0.03, 1.16))
    figure.axes[0].set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_major_formatter("{x:.0%}")
    figure.supxlabel("Depth of the exchanged part, (layer + 1) / layers")
    figure.supylabel("Share of the pairs")
    keys = [line_key(name, **look) for name, look in WHOSE.values()]
    keys += [line_key("its own answer, part dropped", **DROPPED)]
    legend(figure, [*keys, band_key(), patch_key("function layer of the prompts", **BAR)])
    return figure


def draw(panel, rows: list[dict]) -> None:
    """Both shares with their bands, from rows of `swap_shares`, over the function layers."""
    depth = [row["depth"] for row in rows]
    applied = {
        r["depth"]: r["function_prompts"] / r["prompts"] for r in rows if r["function_prompts"]
    }
    panel.bar(applied.keys(), applied.values(), width=0.9 / len(rows), zorder=0, **BAR)
    for share, (_, look) in WHOSE.items():
        low, high = ([row[f"{share}_{end}"] for row in rows] for end in ("low", "high"))
        panel.fill_between(depth, low, high, color=look["color"], alpha=0.18, linewidth=0)
        panel.plot(depth, [row[share] for row in rows], **look)
    if rows[0]["own_dropped"] is not None:
        panel.plot(depth, [row["own_dropped"] for row in rows], **DROPPED)
    note(panel, f"n = {rows[0]['prompts']}", 0.03, 0.99)
