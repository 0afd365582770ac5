"""Figures of training checkpoints: what a series' models do with each relation, by step."""

import math
from collections import Counter

from matplotlib.ticker import MaxNLocator
from seaborn import color_palette

from vecsweep.figures.drawing import (
    GREY,
    NO_VECTOR,
    PANELS,
    Empty,
    band_key,
    grid,
    injected_tasks,
    legend,
    line_key,
    records,
    say_empty,
    tasks_of,
)
from vecsweep.statistics import FEW

LINES = 5  # tasks of a panel
# Column of table `checkpoints` -> a panel's title.
RELATION = {
    "correct": "Answered correctly, share of prompts",
    "argument_function": "Argument, then function, share of prompts",
    "depth": "Crossover, (layer + 1) / layers",
}
VECTOR = {
    "rise": "Lift by the o-vector, in reciprocal rank",
    "among_after": "Own answer among all answers, reciprocal place",
}
LOG = 20  # from this ratio of the last step to the first on, steps stand on a log axis


def checkpoints(connection):
    """Right answers, argument-function and the crossover's depth by training step."""
    rows = rows_of(connection, "prompts")
    if not rows:
        raise Empty("too few prompts at every step")
    return by_step(rows, RELATION, tasks_of(connection))


def checkpoint_vectors(connection):
    """The o-vector's lift, and the own answer's place under it, by training step."""
    tasks = injected_tasks(connection)
    rows = rows_of(connection, "test_prompts")
    if not rows:
        raise Empty(f"{NO_VECTOR} that could be tested")
    return by_step(rows, VECTOR, tasks)


def rows_of(connection, counted: str) -> list[dict]:
    """The rows of table `checkpoints` with enough prompts; Empty if no series has several models."""
    rows = records(connection, "FROM checkpoints")
    if not rows:
        raise Empty("no model of the config has several revisions")
    return [row for row in rows if (row[counted] or 0) >= FEW]


def by_step(rows: list[dict], quantities: dict[str, str], tasks: dict[str, str]):
    """Panels series x quantities with a line a task, over the steps that have enough prompts."""
    series = [*dict.fromkeys(row["series"] for row in rows)][: PANELS // len(quantities)]
    rows = [row for row in rows if row["series"] in series and row["task"] in tasks]
    held = Counter(row["task"] for row in rows)
    # Those with most steps to show; a stable sort leaves the config's order.
    first = sorted((task for task in tasks if held[task]), key=lambda task: -held[task])[:LINES]
    colours = dict(zip(filter(first.__contains__, tasks), color_palette("colorblind")))
    across, down = quantities, dict(zip(series, series))
    figure, panels = grid(down, across, high=1.6, sharex=False, sharey=False)
    for (name, quantity), panel in panels.items():
        mine = [row for row in rows if row["series"] == name and row["task"] in colours]
        place = step_axis(panel, {row["step"] for row in mine})
        for task, colour in colours.items():
            own = [row for row in mine if row["task"] == task]
            draw(panel, [place[row["step"]] for row in own], own, quantity, colour)
        if all(row[quantity] is None for row in mine):
            say_empty(panel, "at no step")
        if quantity == "rise":
            panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        else:
            panel.set(ylim=(-0.02, 1.03), yticks=(0, 0.5, 1))
        panel.yaxis.set_major_formatter("{x:g}")
    figure.supxlabel("Training step")
    looks = {"marker": "o", "markersize": 3}
    keys = [line_key(tasks[task], "-", colour, **looks) for task, colour in colours.items()]
    keys.append(band_key())
    if "among_after" in quantities:
        keys.append(line_key("by chance", ":", linewidth=0.9))
    legend(figure, keys)
    return figure


def draw(panel, x: list[float], rows: list[dict], quantity: str, colour) -> None:
    """A quantity's line and 95 % band; a step without one leaves a gap."""
    ends = [quantity] + [f"{quantity}_{end}" for end in ("low", "high")]
    y, low, high = ([math.nan if row[k] is None else row[k] for row in rows] for k in ends)
    if quantity == "depth":  # resamples without a crossover leave an end open
        low, high = ([end if e != e and v == v else e for e, v in zip(side, y)]
                     for side, end in ((low, 0), (high, 1)))  # fmt: skip
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    # One step alone has no area.
    panel.vlines(x, low, high, color=colour, linewidth=0.7, alpha=0.6)
    panel.plot(x, y, color=colour, marker="o", markersize=3)
    if quantity == "among_after":
        chances = [row["among_chance"] for row in rows]
        panel.plot(x, chances, color=colour, linestyle=":", linewidth=0.9)


def step_axis(panel, steps: set) -> dict:
    """The axis of training steps, log where they span much: {step: place}; None (`main`) is last.

    On a log axis step 0 stands before the first one.
    """
    known = sorted(step for step in steps if step is not None)
    positive = [step for step in known if step > 0]
    log = bool(positive) and positive[-1] >= LOG * positive[0]
    places = {step: float(step) for step in known}
    named = {}  # place -> label of what has no number on the axis
    first, last = (positive or known or [0])[0], (known or [0])[-1]
    if log:
        panel.set_xscale("log")
        away = (last / first) ** 0.2
        if 0 in steps:
            places[0] = first / away
            named[places[0]] = "0"
        beyond = last * away
    else:
        beyond = last + 0.2 * ((last - known[0] if known else 0) or 1)
    if None in steps:
        places[None] = beyond
        named[beyond] = "main"
    ticks = ticks_of(positive if log else known, log)
    panel.set_xticks([*ticks, *named], [*map(short, ticks), *named.values()])
    panel.set_xticks([], minor=True)
    return places


def ticks_of(steps: list[int], log: bool) -> list[float]:
    """Ticks among steps: powers of ten on a log axis, at most six; else round numbers, or the one."""
    if len(steps) < 2:
        return list(map(float, steps))
    if not log:
        found = MaxNLocator(3, integer=True).tick_values(steps[0], steps[-1])
        return [tick for tick in found if steps[0] <= tick <= steps[-1]]
    low, high = math.ceil(math.log10(steps[0])), math.floor(math.log10(steps[-1]))
    return [10.0**k for k in range(low, high + 1, 1 + (high - low) // 4)]


def short(step: float) -> str:
    """A step for an axis: 143000 -> 143k."""
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if step >= unit:
            return f"{step / unit:g}{sign}"
    return f"{step:g}"
