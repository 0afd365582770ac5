"""Figure of the exchanges: whose answer is on top when prompts trade a part of one layer."""

from vecsweep.figures.drawing import (
    ANSWER,
    GREY,
    OCHRE,
    PANELS,
    by_cell,
    legend,
    line_key,
    listing,
    models_of,
    number,
    say_in_row,
    tasks_among,
    too_few,
)

PARTS = {"ffn": "FFN", "attention": "attention"}
SHARES = {
    "own": ("its own answer is kept", {"color": ANSWER, "marker": "o"}),
    "others": ("the other's answer comes along", {"color": OCHRE, "marker": "s"}),
    "own_dropped": (
        "its own answer is kept, update dropped",
        {"color": GREY, "marker": "D", "markerfacecolor": "white"},
    ),
}
COLUMNS = {0.25: "n", 1.0: "reading"}


def swaps(connection):
    """Shares of own and other's answers after an exchange at the function layers: a panel each model."""
    cells = by_cell(connection, "FROM swap_verdicts")
    tasks = tasks_among(connection, {task for _, task in cells}, "no prompts exchanged anything")
    tasks = dict([*tasks.items()][:PANELS])
    lines = [(task, part) for task in tasks for part in PARTS]
    labels = [f"{tasks[task]}: {PARTS[part]}" for task, part in lines]
    figure, panels = listing(models_of(connection), labels, COLUMNS, line=0.3, beside=0.3)
    for model, (panel, numbers) in panels.items():
        for y, (task, part) in enumerate(lines):
            if list(tasks).index(task) % 2:
                panel.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
            rows = [row for row in cells.get((model, task), []) if row["sublayer"] == part]
            if not rows or rows[0]["verdict"] == "too few":
                say_in_row(panel, y, too_few("n = {}", [row["prompts"] for row in rows] or [0]))
                continue
            (row,) = rows
            for shift, (share, (_, look)) in zip((-0.24, 0, 0.24), SHARES.items()):
                ends = row[f"{share}_low"], row[f"{share}_high"]
                panel.hlines(y + shift, *ends, color=look["color"], linewidth=0.9)
                panel.plot(row[share], y + shift, markersize=3.5, clip_on=False, **look)
            for x, text in zip(COLUMNS, (f"{row['prompts']}", row["verdict"])):
                number(numbers, x, y, text)
        panel.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        panel.xaxis.set_major_formatter("{x:.0%}")
        if panel.get_subplotspec().is_last_row():
            panel.set_xlabel("Share of the pairs of prompts")
    keys = [line_key(name, "-", markersize=4, **look) for name, look in SHARES.values()]
    legend(figure, [*keys, line_key("95 % interval", "-", linewidth=0.9)], columns=2)
    return figure
