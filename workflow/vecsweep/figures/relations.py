"""Figures of the effect by kind of relation and by tokenization (paper Appendix E)."""

import math
import textwrap

import matplotlib.figure

from vecsweep.figures.drawing import (
    ANSWER,
    FEW_PROMPTS,
    GREY,
    NO_TASK,
    NO_VECTOR,
    PALE,
    grid,
    injected_tasks,
    legend,
    line_key,
    models_of,
    nothing,
    rank_axis,
    records,
    say_empty,
    settings_of,
    task_look,
)

KINDS = ("one-to-one", "many-to-one", "one-to-many")
LENGTHS = {
    "argument_length": "Tokens of the argument",
    "answer_length": "Tokens of the answer",
    "first_token_letters": "Letters of the answer's first token",
}
LONGEST = 6  # a category for this many tokens or letters, or more, as in view word_lengths


def relations(connection):
    """Effect by kind of relation, a point each task: a pair of panels each model."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    kind_of = dict(connection.execute("SELECT task, kind FROM tasks").fetchall())
    kinds = [kind for kind in KINDS if kind in {kind_of[task] for task in tasks}]
    found = settings_of(connection)
    columns = 1 if len(models) <= 2 else 2
    down = math.ceil(len(models) / columns)
    most = max(sum(kind_of[task] == kind for task in tasks) for kind in kinds)
    wide = max(1.6, (0.35 + 0.13 * most) * len(kinds))
    size = ((2 * wide + 1.2) * columns + 1.8, max(2.3 * down, 0.17 * len(tasks) + 0.9) + 0.6)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * columns, squeeze=False).reshape(-1, 2)
    for pair in axes[len(models) :]:
        for panel in pair:
            panel.set_axis_off()
    few = False
    for model, (left, right) in zip(models, axes):
        ticks = []
        for k, kind in enumerate(kinds):
            members = [task for task in tasks if kind_of[task] == kind]
            here = [task for task in members if (model, task, "in") in found]
            ticks.append(f"{kind}\n{len(here)} of {len(members)}")
            for i, task in enumerate(members):
                if task not in here:
                    continue
                row = found[model, task, "in"]
                x = k + 0.8 * ((i + 0.5) / len(members) - 0.5)
                look = task_look(list(tasks).index(task))
                if row["prompts"] < FEW_PROMPTS:
                    look, few = look | {"markerfacecolor": "white"}, True
                left.plot(x, row["reciprocal_rank_before"], color=GREY, marker="_", markersize=6)
                for panel, name in ((left, "reciprocal_rank_after"), (right, "top_1")):
                    panel.vlines(
                        x,
                        row[f"{name}_low"],
                        row[f"{name}_high"],
                        color=look["color"],
                        linewidth=0.9,
                    )
                    panel.plot(x, row[name], **look)
        rank_axis(left.yaxis, found.values())
        right.set_ylim(-0.03, 1.03)
        right.yaxis.set_major_formatter("{x:.0%}")
        for panel in (left, right):
            panel.set_xlim(-0.5, len(kinds) - 0.5)
            panel.set_xticks(range(len(kinds)), ticks)
            for k in range(1, len(kinds)):
                panel.axvline(k - 0.5, color="#E8E8E8", linewidth=0.6, zorder=0)
        left.set_title(textwrap.fill(models[model], 40), loc="left")
        left.set_ylabel("Mean reciprocal rank (rank)")
        right.set_ylabel("Top-1 share")
    keys = [line_key(tasks[t], "none", **task_look(k)) for k, t in enumerate(tasks)]
    keys += [line_key("before", "none", GREY, marker="_", markersize=6)]
    if few:
        look = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
        keys.append(line_key(f"n < {FEW_PROMPTS}", "none", **look))
    figure.legend(handles=keys, loc="outside right upper")
    return figure


def tokenization(connection):
    """Effect by tokens of argument and answer and letters of the first token (Appendix E)."""
    models = models_of(connection)
    if not injected_tasks(connection):
        return nothing(NO_TASK)
    bands, means = (
        records(connection, f"FROM {name} ORDER BY ALL")
        for name in ("length_bands", "length_means")
    )
    figure, panels = grid(models, LENGTHS, 2.1, 1.6)
    axes = figure.axes[0]
    axes.set(xlim=(0.5, LONGEST + 0.5), ylim=(-0.02, 1.17), yticks=(0, 0.5, 1))
    axes.set_xticks(range(1, LONGEST + 1), [*range(1, LONGEST), f"{LONGEST}+"])
    for (model, length), panel in panels.items():
        groups = [r for r in bands if (r["model"], r["length"]) == (model, length)]
        if not groups:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = [r for r in means if (r["model"], r["length"]) == (model, length)]
        for task in sorted({row["task"] for row in rows}):
            some = [r for r in rows if r["task"] == task and r["prompts"] > 2]
            x, y = ([row[key] for row in some] for key in ("size", "after"))
            panel.plot(x, y, color=PALE, linewidth=0.8, zorder=1)
        for name, colour, face, shift in (
            ("before", GREY, "white", -0.1),
            ("after", ANSWER, ANSWER, 0.1),
        ):
            for row in groups:
                x = row["size"] + shift
                if row["prompts"] >= 5:
                    ends = (row[f"{name}_low"], row[f"{name}_high"])
                    panel.vlines(x, *ends, color=colour, linewidth=0.9)
                look = {"marker": "o", "markersize": 3.5, "markerfacecolor": face}
                panel.plot(x, row[name], color=colour, linestyle="none", **look)
        for row in groups:
            place = {"ha": "center", "va": "top", "fontsize": 6, "color": GREY}
            panel.text(row["size"], 1.14, row["prompts"], **place)
    figure.supylabel("Mean reciprocal rank of the answer")
    figure.supxlabel("Number of tokens or letters; above: n")
    keys = [line_key("before", "-", GREY, marker="o", markersize=4, markerfacecolor="white")]
    keys += [line_key("after, o-vector", "-", ANSWER, marker="o", markersize=4)]
    keys += [line_key("after, each task (n > 2)", "-", PALE)]
    keys += [line_key("95 % interval (n > 4)", "-", linewidth=0.9)]
    legend(figure, keys)
    return figure
