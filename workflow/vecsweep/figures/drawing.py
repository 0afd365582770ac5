"""What the figures share: colours, style, labels of models and tasks, grids of panels, keys."""

import math
import textwrap

import matplotlib
import matplotlib.figure
import seaborn
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from vecsweep.statistics import FEW

# From seaborn's "colorblind" palette; argument and answer have the same colours everywhere.
ARGUMENT, ANSWER = "#D55E00", "#0173B2"
APPLIED, NEUTRAL, GREY = "#029E73", "#CFCFCF", "#6B6B6B"
PALE, PURPLE, OCHRE = "#8CCBEF", "#CC78BC", "#DE8F05"
PANELS, MODELS = 8, 4  # at most in one figure: print that is larger than a page is not read
NO_TASK = "no task's o-vectors were injected"
NO_VECTOR = "no prompt is a donor of an o-vector"
Words = str | dict[tuple, str]
FONT = "DejaVu Sans"  # comes with matplotlib, so that figures look the same everywhere


class Empty(Exception):
    """There is nothing to draw, and why: the figure says it."""


def style() -> dict:
    """Matplotlib settings of every figure: print sizes, text of an SVG kept as text."""
    # On top of matplotlib's own defaults: a matplotlibrc must not change a figure.
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    return (
        defaults
        | seaborn.plotting_context("paper")
        | seaborn.axes_style("ticks")
        | {
            "font.family": "sans-serif",
            "font.sans-serif": [FONT],
            "font.size": 7.5,
            "text.parse_math": False,  # a $ in a task's title is a $
            "axes.labelsize": 7.5,
            "axes.titlesize": 8,
            "axes.titleweight": "bold",
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.labelsize": 8.5,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "lines.linewidth": 1.3,
            "svg.fonttype": "none",
            "svg.hashsalt": "vecsweep",
        }
    )


def models_of(connection, most: int = MODELS) -> dict[str, str]:
    """{model: label with its size} in the order of all figures: the largest first, at most so many.

    Of a series of training checkpoints only the last.
    """
    query = "SELECT model, parameters FROM last_models ORDER BY 2 DESC, 1 LIMIT ?"
    rows = connection.execute(query, [most]).fetchall()
    return {model: f"{model}, {in_words(parameters)}" for model, parameters in rows}


def in_words(parameters: int) -> str:
    """A number of parameters for people: 268098176 -> 268 M."""
    unit, sign = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    # A hard space: a label that wraps keeps number and unit together.
    return f"{parameters / unit:.3g}\u00a0{sign}"


def tasks_of(connection) -> dict[str, str]:
    """{task: title} in the order of all figures, the config's."""
    return dict(connection.execute("SELECT task, title FROM tasks ORDER BY place").fetchall())


def tasks_among(connection, known, why: str) -> dict[str, str]:
    """{task: title} of the tasks that are known; Empty if there is none."""
    tasks = {task: title for task, title in tasks_of(connection).items() if task in known}
    if not tasks:
        raise Empty(why)
    return tasks


def injected_tasks(connection) -> dict[str, str]:
    """{task: title} of the tasks whose o-vectors were injected; Empty if there is none."""
    query = "SELECT task FROM tasks WHERE injected"
    known = {task for (task,) in connection.execute(query).fetchall()}
    return tasks_among(connection, known, NO_TASK)


def records(connection, query: str, values=()) -> list[dict]:
    """The rows of a query as dicts."""
    answer = connection.execute(query, values)
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row)) for row in answer.fetchall()]


def grid(down: dict, across: dict, high=1.35, left=0.9, sharex=True, sharey=True):
    """A Figure and its panels {(key down, key across): Axes}, with both labels; 7.2 inches at most.

    A single row wraps into two where it has more than four panels. `high` is a panel's height,
    `left` what stands beside the panels, in inches. Shared axes are labelled at the outer panels.
    """
    columns = len(across) if len(across) <= 4 else math.ceil(len(across) / 2)
    blocks = math.ceil(len(across) / columns)
    rows = blocks * len(down)
    width = {1: 4.4, 2: 5.8}.get(columns, 7.2)
    high = max(high, 1.8) if columns < 3 else high
    figure = matplotlib.figure.Figure(figsize=(width, high * rows + 1.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    wide = (width - left) / columns
    panels = {}
    for k, (key, title) in enumerate(across.items()):
        block, column = divmod(k, columns)
        for m, (other, label) in enumerate(down.items()):
            panel = panels[other, key] = axes[block * len(down) + m, column]
            if m == 0:  # above the small print of say_above
                panel.set_title(textwrap.fill(title, round(13 * wide)), pad=13)
            if column == 0:
                # About 22 letters fit the height; long names break at hyphens.
                panel.set_ylabel(textwrap.fill(label, round(14.7 * high)))
            # The last panel of a column may have empty places below it.
            last = m == len(down) - 1 and k + columns >= len(across)
            if sharex:
                panel.tick_params(labelbottom=last)
            if sharey:
                panel.tick_params(labelleft=column == 0)
    for panel in {*axes.flat} - {*panels.values()}:
        panel.set_axis_off()
    return figure, panels


def sheet(
    connection, counts: dict, words: Words = "n = {}", missing="no prompts", tasks=None, **look
):
    """A Figure of panels models x tasks, and {(model, task): Axes} of those that are to be drawn.

    `counts` has the numbers of prompts {(model, task): (n, ...)}, `words` says them above a panel:
    a text for all, or one each.
    Below FEW of any, a panel says so; without a count it says `missing`. Of `tasks`, all by
    default, those stand in at most PANELS panels that have enough prompts in most models, then
    those whose o-vectors were injected. The longer of models and tasks goes from left to right.
    """
    models = models_of(connection)
    tasks = tasks_of(connection) if tasks is None else tasks
    query = "SELECT task FROM tasks WHERE injected"
    injected = {task for (task,) in connection.execute(query).fetchall()}

    def last(task):
        enough = [min(counts.get((model, task), [0])) >= FEW for model in models]
        return -sum(enough), task not in injected

    first = sorted(tasks, key=last)[: PANELS // len(models)]  # a stable sort: the config's order
    tasks = {task: title for task, title in tasks.items() if task in first}
    if len(models) > len(tasks):
        figure, panels = grid(tasks, models, **look)
        panels = {(model, task): panel for (task, model), panel in panels.items()}
    else:
        figure, panels = grid(models, tasks, **look)
    return figure, counted(panels, counts, words, missing)


def vector_sheet(connection, cells: dict, **look):
    """A sheet of the tasks whose o-vectors were injected, from {(model, task): rows with `prompts`}."""
    counts = {cell: (rows[0]["prompts"],) for cell, rows in cells.items()}
    tasks = injected_tasks(connection)
    return sheet(connection, counts, missing=NO_VECTOR, tasks=tasks, **look)


def counted(panels: dict, counts: dict, words: Words = "n = {}", missing="no prompts") -> dict:
    """Say in every panel how many prompts it has; those of `panels` that have enough to be drawn."""
    drawn = {}
    for cell, panel in panels.items():
        said = words if isinstance(words, str) else words.get(cell, "")
        if min(counts.get(cell, [0])) >= FEW:
            say_above(panel, said.format(*counts[cell]))
            drawn[cell] = panel
            continue
        text = too_few(said, counts[cell]) if cell in counts else missing
        say_empty(panel, textwrap.fill(text, 14))
        # Ticks of axes that are no other panel's say nothing.
        if len(panel.get_shared_y_axes().get_siblings(panel)) == 1:
            panel.set_yticks([])
        if len(panel.get_shared_x_axes().get_siblings(panel)) == 1:
            panel.set_xticks([])
    return drawn


def too_few(words: str, numbers) -> str:
    """What stands in the place of fewer than FEW prompts."""
    return f"too few, {words.format(*numbers)}"


def say_above(panel, text: str, x: int = 1) -> None:
    """Small print above a panel, at its left (0) or right end (1): there it covers nothing."""
    panel.annotate(
        text, (x, 1), (0, 2), xycoords="axes fraction", textcoords="offset points",
        ha="right" if x else "left", va="bottom", fontsize=6.5, color=GREY,
    )  # fmt: skip


def say_empty(panel, text: str) -> None:
    """Say in an empty panel why it is empty."""
    look = {"ha": "center", "va": "center", "style": "italic", "color": GREY}
    panel.text(0.5, 0.5, text, transform=panel.transAxes, **look)


def say_in_row(panel, y: float, text: str) -> None:
    """Say in an empty row why it is empty."""
    look = {"fontsize": 6.5, "style": "italic", "color": GREY, "va": "center"}
    panel.text(0.02, y, text, transform=panel.get_yaxis_transform(), **look)


def listing(models: dict, labels: list[str], heads: dict[float, str], line=0.24, beside=0.5):
    """A Figure with a panel each model, a row each label, and a panel of numbers beside it.

    `heads` are the numbers' headings by place, 0 to 1; `line` is a row's height in inches,
    `beside` the numbers' width as a share of the panel's.
    Returns the figure and {model: (panel, numbers)}.
    """
    columns = min(2, len(models))
    down = math.ceil(len(models) / columns)
    size = ({1: 5.2, 2: 8.2}[columns], down * (0.6 + line * len(labels)) + 1.1)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * columns, squeeze=False, width_ratios=[1, beside] * columns)
    axes = axes.reshape(-1, 2)
    for panel in (*axes[: len(models), 1], *axes[len(models) :].flat):
        panel.set_axis_off()
    for k, (model, (panel, numbers)) in enumerate(zip(models, axes)):
        for x, text in heads.items():
            number(numbers, x, -0.8, text)
        panel.set_title(models[model], loc="left")
        for part in (panel, numbers):
            part.set_ylim(len(labels) - 0.5, -1.1)
        panel.set_yticks(range(len(labels)), labels if k % columns == 0 else [])
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
    return figure, dict(zip(models, axes))


def number(panel, x: float, y: float, text: str) -> None:
    """A cell of the numbers beside a panel, right-aligned at x."""
    panel.text(x, y, text, va="center", ha="right", fontsize=6.5, color="#333333")


def nothing(text: str):
    """A figure that only says why it is empty."""
    figure = matplotlib.figure.Figure(figsize=(4.8, 2), layout="constrained")
    panel = figure.subplots()
    panel.set_axis_off()
    say_empty(panel, textwrap.fill(text, 40))
    return figure


def printable(token: str, letters: int) -> str:
    """A token in at most `letters` signs that the font has: ␣ for a space, U+3011 for others."""
    font = get_font(findfont(FONT))
    text = "".join(
        sign if sign.isprintable() and font.get_char_index(ord(sign)) else f"⟨{ord(sign):04X}⟩"
        for sign in token.replace(" ", "␣").replace("\n", "⏎")
    )
    return text if len(text) <= letters else text[: letters - 1] + "…"


def end_of(prompt: str, letters: int = 90) -> str:
    """The last whole words of a prompt on one line."""
    shown = prompt if len(prompt) <= letters else "… " + prompt[-letters:].split(maxsplit=1)[-1]
    return printable(shown, 10**6).replace("␣", " ").replace("⏎", " ⏎ ")


def legend(figure, keys: list, columns: int | None = None) -> None:
    """One legend above all panels."""
    wide = figure.get_figwidth()
    columns = columns or (len(keys) if wide > 1.3 * len(keys) else math.ceil(len(keys) / 2))
    place = {"handles": keys, "loc": "outside upper center"}
    made = figure.legend(**place, ncols=columns)
    # Only the drawn text says how wide it is: one that is cut off gets more rows.
    while made.get_window_extent().width > 0.95 * figure.bbox.width and columns > 1:
        made.remove()
        columns -= 1
        made = figure.legend(**place, ncols=columns)
    # Its rows do not take the panels' place.
    more = math.ceil(len(keys) / columns) - 1
    figure.set_figheight(figure.get_figheight() + 0.16 * more)


def line_key(label, linestyle, color=GREY, **look):
    return Line2D([], [], color=color, linestyle=linestyle, label=label, **look)


def patch_key(label, color, **look):
    return Patch(facecolor=color, label=label, **({"linewidth": 0} | look))


def text_key(label, color):
    """A key of words in a colour: the word itself stands there, as a marker."""
    word = TextPath((0, 0), "word", prop=FontProperties(family=FONT, weight="bold"))
    left, low, wide, high = word.get_extents().bounds
    word = word.transformed(Affine2D().translate(-left - wide / 2, -low - high / 2))
    sign = {"marker": word, "markersize": 20, "markeredgewidth": 0}
    return Line2D([], [], linestyle="none", color=color, label=f"is the {label}", **sign)


def band_key():
    return patch_key("95 % band", GREY, alpha=0.25)


OF_EFFECT = ("model", "ovector_task", "domain", "task")


def settings_of(connection) -> dict:
    """{(model, task, domain, task of the prompts): row of `effects`} of the o-vectors."""
    rows = records(connection, "FROM chosen_effects")
    return {tuple(row[key] for key in OF_EFFECT): row for row in rows}


def by_cell(connection, query: str) -> dict:
    """{(model, task): rows of a query}."""
    found: dict = {}
    for row in records(connection, query):
        found.setdefault((row["model"], row["task"]), []).append(row)
    return found


def prompt_counts(connection, prompt_set: str) -> dict:
    """{(model, task): (prompts answered correctly, prompts)}."""
    rows = records(connection, "FROM correct_counts WHERE prompt_set = ?", [prompt_set])
    return {(row["model"], row["task"]): (row["correct"], row["prompts"]) for row in rows}


def rank_axis(axis, rows) -> None:
    """A log axis of mean reciprocal ranks down to the lowest interval, with ranks at its ticks."""
    rows = list(rows)
    lows = [row[f"reciprocal_rank_{when}_low"] for row in rows for when in ("before", "after")]
    decades = math.ceil(-math.log10(max(min(lows, default=0.01), 1e-4)))
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": (10**-decades, 1.15)})
    ticks = [10**-k for k in range(decades + 1)]
    places = ["1st", "10th", "100th", "1000th", "10⁴th"]
    between = "\n" if axis.axis_name == "x" else "  "
    axis.set_ticks(ticks, [f"{t:g}{between}({p})" for t, p in zip(ticks, places)])
    axis.set_ticks([], minor=True)
