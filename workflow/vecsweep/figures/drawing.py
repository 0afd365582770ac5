"""What the figures share: colours, style, labels of models and tasks, grids of panels, keys."""

import math
import textwrap

import matplotlib
import matplotlib.figure
import seaborn
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

# From seaborn's "colorblind" palette; argument and answer have the same colours everywhere.
ARGUMENT, ANSWER = "#D55E00", "#0173B2"
APPLIED, NEUTRAL, GREY = "#029E73", "#CFCFCF", "#6B6B6B"
PALE, PURPLE, OCHRE = "#8CCBEF", "#CC78BC", "#DE8F05"
FEW_PROMPTS = 20
NO_TASK = "no task's o-vectors were injected"
NO_VECTOR = "no prompt gave an o-vector"
FONT = "DejaVu Sans"  # comes with matplotlib, so that figures look the same everywhere


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


def models_of(connection) -> dict[str, str]:
    """{model: label with its size}, smallest first."""
    rows = connection.execute("SELECT model, parameters FROM models ORDER BY 2, 1").fetchall()
    return {model: f"{model}, {in_words(parameters)}" for model, parameters in rows}


def in_words(parameters: int) -> str:
    """A number of parameters for people: 268098176 -> 268 M."""
    unit, sign = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    # A hard space: a label that wraps keeps number and unit together.
    return f"{parameters / unit:.3g}\u00a0{sign}"


def tasks_of(connection) -> dict[str, str]:
    """{task: title}, in the config's order."""
    return dict(connection.execute("SELECT task, title FROM tasks ORDER BY place").fetchall())


def records(connection, query: str, values=()) -> list[dict]:
    """The rows of a query as dicts."""
    answer = connection.execute(query, values)
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row)) for row in answer.fetchall()]


def grid(models: dict, tasks: dict, wide=2.0, high=1.5, share=True, columns=None):
    """A Figure and its panels {(model, task): Axes}: a row each model, a column each task.

    Many tasks wrap into several blocks of rows, as many as make the page about square. With
    `share` all panels have the axes of the first one, and only the outer ones have tick labels.
    """

    def elongation(columns):
        rows = math.ceil(len(tasks) / columns) * len(models)
        return abs(math.log(wide * columns / (high * rows) / 1.2))

    columns = columns or min(range(1, min(len(tasks), 8) + 1), key=elongation, default=1)
    blocks = math.ceil(len(tasks) / columns) or 1
    down = blocks * max(len(models), 1)
    if columns == 1:
        wide, high = max(wide, 4.4), max(high, 1.9)
    size = (wide * columns + 0.9, high * down + 1.0)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, columns, squeeze=False, sharex=share, sharey=share)
    panels = {}
    for k, (task, title) in enumerate(tasks.items()):
        block, column = divmod(k, columns)
        for m, (model, label) in enumerate(models.items()):
            panel = panels[model, task] = axes[block * len(models) + m, column]
            if m == 0:
                panel.set_title(textwrap.fill(title, round(13 * wide)))
            if column == 0:
                # About 22 letters fit the height; long names break at hyphens.
                panel.set_ylabel(textwrap.fill(label, round(14.7 * high)))
            # The last panel of a column may have empty places below it.
            last = m == len(models) - 1 and k + columns >= len(tasks)
            if share:
                panel.tick_params(labelbottom=last, labelleft=column == 0)
    for panel in {*axes.flat} - {*panels.values()}:
        panel.set_axis_off()
    return figure, panels


def note(panel, text: str, x=0.03, y=0.97) -> None:
    """Small print in a corner of a panel; in the upper left one, curves have not risen yet."""
    look = {"fontsize": 6.5, "color": GREY, "va": "top" if y > 0.5 else "bottom"}
    look |= {"ha": "left" if x < 0.5 else "right"}
    look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    panel.text(x, y, text, transform=panel.transAxes, **look)


def say_empty(panel, count, text: str = "no prompt\nanswered correctly") -> None:
    """Say in an empty panel why it is empty."""
    if count is not None:
        text = f"{text}\n(n = 0 of {count})" if count else "no prompts"
    look = {"ha": "center", "va": "center", "style": "italic", "color": GREY}
    panel.text(0.5, 0.5, text, transform=panel.transAxes, **look)


def nothing(text: str):
    """A figure that only says why it is empty."""
    figure = matplotlib.figure.Figure(figsize=(4.8, 2), layout="constrained")
    panel = figure.subplots()
    panel.set(xticks=[], yticks=[])
    say_empty(panel, None, text)
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
    while made.get_window_extent().width > figure.bbox.width and columns > 1:
        made.remove()
        columns = math.ceil(columns / 2)
        made = figure.legend(**place, ncols=columns)


def task_look(k: int) -> dict:
    """Colour and marker of the k-th task: 42 differ."""
    # Neither the colours of argument and answer nor yellow, which is faint on white.
    palette = seaborn.color_palette("colorblind")
    colour = palette[(2, 4, 1, 9, 5, 7, 6)[k % 7]]
    return {"color": colour, "marker": "osD^vP"[k % 6], "markersize": 5}


def line_key(label, linestyle, color=GREY, **look):
    return Line2D([], [], color=color, linestyle=linestyle, label=label, **look)


def patch_key(label, color, **look):
    return Patch(facecolor=color, label=label, **({"linewidth": 0} | look))


def text_key(label, color):
    sign = {"marker": "$\\mathbf{word}$", "markersize": 20, "markeredgewidth": 0}
    return Line2D([], [], linestyle="none", color=color, label=f"is the {label}", **sign)


def band_key():
    return patch_key("95 % band", GREY, alpha=0.25)


def injected_tasks(connection) -> dict[str, str]:
    """{task: title} of the tasks whose o-vectors were injected, in the config's order."""
    query = "SELECT task, title FROM tasks WHERE injected ORDER BY place"
    return dict(connection.execute(query).fetchall())


def settings_of(connection) -> dict:
    """{(model, task, domain): row of `effects`} of the o-vectors."""
    rows = records(connection, "FROM chosen_effects")
    return {(row["model"], row["ovector_task"], row["domain"]): row for row in rows}


def by_cell(connection, query: str) -> dict:
    """{(model, task): rows of a query}."""
    found: dict = {}
    for row in records(connection, query):
        found.setdefault((row["model"], row["task"]), []).append(row)
    return found


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
