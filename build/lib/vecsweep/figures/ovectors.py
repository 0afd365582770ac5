"""Figures of the o-vectors: interventions, controls, parts, relations (paper Figs 4, 5, App. E)."""

import math
import textwrap

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    ARGUMENT,
    FEW_PROMPTS,
    GREY,
    OCHRE,
    PALE,
    PURPLE,
    end_of,
    grid,
    legend,
    line_key,
    models_of,
    note,
    nothing,
    patch_key,
    printable,
    records,
    say_empty,
    task_look,
    tasks_of,
    text_key,
)

# Labels and colours of what was put in instead of the chosen o-vector: vectors of the same task,
# rivals that may well know the answer, and controls that must not.
OWN, RIVALS, CONTROLS = (ANSWER, "o-vectors of the task"), (PURPLE, "rivals"), (GREY, "controls")
INJECTED = {
    "o-vector": ("chosen o-vector", OWN),
    "mean": ("mean of the donors", OWN),
    "donor": ("other donors", OWN),
    "difference_once": ("difference, added once", RIVALS),
    "difference": ("difference of means", RIVALS),
    "rival": ("another task's o-vector", RIVALS),
    "unrelated": ("FFN on random words", CONTROLS),
    "zero": ("zero (FFNs dropped)", CONTROLS),
    "random": ("random, same norm", CONTROLS),
}
BY_LAYER = {
    "o-vector": {"color": ANSWER, "linestyle": "-", "linewidth": 1.8},
    "difference": {"color": PURPLE, "linestyle": "-"},
    "rival": {"color": OCHRE, "linestyle": (0, (5, 1.5))},
    "unrelated": {"color": APPLIED, "linestyle": (0, (3, 1, 1, 1))},
    "zero": {"color": "#222222", "linestyle": (0, (1, 1))},
    "random": {"color": "#8A8A8A", "linestyle": "-"},
}
BASES = {
    "neurons": ("neurons of the FFN", {"color": PURPLE, "marker": "o"}),
    "directions": ("directions over donors", {"color": APPLIED, "marker": "s"}),
}
KEPT = ("1", "10", "100", "all")
KINDS = ("one-to-one", "many-to-one", "one-to-many")
LENGTHS = {
    "argument_length": "Tokens of the argument",
    "answer_length": "Tokens of the answer",
    "first_token_letters": "Letters of the answer's first token",
}
COLUMNS = {0.14: "n", 0.5: "top-1", 1.0: "no effect"}  # numbers beside a panel, by place
LONGEST = 6  # a category for this many tokens or letters, or more
RESAMPLES = 1000
NO_TASK = "no task's o-vectors were injected"
NO_VECTOR = "no prompt gave an o-vector"


def interventions(connection):
    """The answer before and after the chosen o-vector, in- and out-of-domain (paper Figure 5)."""
    import matplotlib.figure

    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    found, names = settings_of(connection), outside_names(connection)
    domains = {task: ["in"] for task in tasks}
    for _, task, domain in found:
        if domain == "out" and "out" not in domains[task]:
            domains[task].append("out")
    lines = [(task, domain) for task in tasks for domain in domains[task]]
    labels = [tasks[t] if d == "in" else f"out: {names[t]}" for t, d in lines]
    columns = min(2, len(models))
    down = math.ceil(len(models) / columns)
    size = (1.5 + 3.7 * columns, down * (0.6 + 0.24 * len(lines)) + 1.1)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * columns, squeeze=False, width_ratios=[2, 1] * columns)
    axes = axes.reshape(-1, 2)
    for panel in (*axes[: len(models), 1], *axes[len(models) :].flat):
        panel.set_axis_off()
    for k, (model, (panel, numbers)) in enumerate(zip(models, axes)):
        for x, text in COLUMNS.items():
            number(numbers, x, -0.8, text)
        for y, (task, domain) in enumerate(lines):
            if list(tasks).index(task) % 2:
                panel.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
            row = found.get((model, task, domain))
            if row:
                draw_before_after(panel, y, row)
                shares = (f"{row['units']}", f"{row['top_1']:.0%}", f"{row['no_effect']:.0%}")
                for x, text in zip(COLUMNS, shares):
                    number(numbers, x, y, text)
            else:
                text = "no prompts" if (model, task, "in") in found else NO_VECTOR
                look = {"fontsize": 6.5, "style": "italic", "color": GREY, "va": "center"}
                panel.text(0.02, y, text, transform=panel.get_yaxis_transform(), **look)
        panel.set_title(models[model], loc="left")
        rank_axis(panel.xaxis, found.values())
        for part in (panel, numbers):
            part.set_ylim(len(lines) - 0.5, -1.1)
        panel.set_yticks(range(len(lines)), labels if k % columns == 0 else [])
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        if k + columns >= len(models):
            panel.set_xlabel("Mean reciprocal rank of the answer\n(rank = 1 / mean)")
    keys = [line_key("before", "-", GREY, marker="o", markerfacecolor="white", markersize=4)]
    keys += [line_key("after, chosen o-vector", "-", ANSWER, marker="o", markersize=4)]
    keys += [line_key("95 % interval", "-", GREY, linewidth=0.9)]
    legend(figure, keys, columns=3)
    return figure


def draw_before_after(panel, y: float, row: dict) -> None:
    """Mean reciprocal rank before and after at height y, from a row of `effects`."""
    for shift, when, colour, face in (
        (-0.15, "before", GREY, "white"),
        (0.15, "after", ANSWER, ANSWER),
    ):
        name = f"reciprocal_rank_{when}"
        panel.hlines(
            y + shift, row[f"{name}_low"], row[f"{name}_high"], color=colour, linewidth=0.9
        )
        look = {"color": colour, "marker": "o", "markersize": 4, "markerfacecolor": face}
        panel.plot(row[name], y + shift, **look)


def number(panel, x: float, y: float, text: str) -> None:
    """A cell of the numbers beside a panel, right-aligned at x."""
    panel.text(x, y, text, va="center", ha="right", fontsize=6.5, color="#333333")


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


def intervention_example(connection):
    """One prompt under the chosen o-vector from every start layer (paper Figure 4)."""
    import matplotlib.figure

    chosen = records(connection, EXAMPLES)
    models, tasks = models_of(connection), tasks_of(connection)
    if not chosen:
        return nothing(NO_VECTOR if injected_tasks(connection) else NO_TASK)
    deepest = max(row["layers"] for row in chosen)
    size = (max(5.4, 2.75 * len(chosen) + 0.3), 0.155 * deepest + 2.2)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    for panel, row in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen):
        draw_start_layers(connection, panel, row)
        words = f"{printable(row['argument'], 16)} → {printable(row['answer'], 16)}"
        model = textwrap.fill(models[row["model"]], 32)
        panel.set_title(f"{model}\n{tasks[row['task']]}: {words}")
    figure.axes[0].set_ylabel("Start layer of the intervention")
    figure.supxlabel("Rank of the token (1: the top token)")
    marks = {"marker": "o", "markersize": 3}
    keys = [
        line_key("answer, after", "-", ANSWER, **marks),
        line_key("argument, after", "-", ARGUMENT, **marks),
        line_key("before", ":"),
        patch_key("chosen start layer", OCHRE, alpha=0.3),
        text_key("answer", ANSWER),
        text_key("argument", ARGUMENT),
    ]
    legend(figure, keys, columns=3)
    return figure


# The largest models at most; for each a dev prompt (dev has every start layer) of capitals where
# there is one, whose answer the chosen setting ranks best, with words of few tokens.
EXAMPLES = """
SELECT * FROM (
    SELECT c.*, i.prompt_id, p.argument, p.answer, p.text, layers, parameters,
           row_number() OVER (PARTITION BY c.model ORDER BY
               c.task != 'capitals', c.task, rank_after, p.argument_length + p.answer_length,
               i.prompt_id) AS place
    FROM chosen AS c
    JOIN interventions AS i
        ON (c.model, c.task, c.donor, c.source_layer, c.start_layer, c.mode, c.scale)
         = (i.model, i.ovector_task, i.donor, i.source_layer, i.start_layer, i.mode, i.scale)
    JOIN prompts AS p
        ON (i.model, i.task, i.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
    JOIN models AS m ON c.model = m.model
    WHERE i.split = 'dev' AND control = 'o-vector' AND target = 'answer'
)
WHERE place = 1
QUALIFY row_number() OVER (ORDER BY parameters DESC, model) <= 4
ORDER BY parameters, model
"""


def draw_start_layers(connection, panel, row: dict) -> None:
    """Ranks of one prompt's argument and answer, and its top token, a row each start layer."""
    keys = ("model", "task", "donor", "source_layer", "mode", "scale", "prompt_id")
    cells = records(
        connection,
        """SELECT start_layer, target, rank_before + 1 AS before, rank_after + 1 AS after, token
           FROM interventions AS i
           LEFT JOIN vocabularies AS v ON (i.model, i.top_after) = (v.model, v.token_id)
           WHERE split = 'dev' AND control = 'o-vector' AND
               (i.model, ovector_task, donor, source_layer, mode, scale, prompt_id)
               = (?, ?, ?, ?, ?, ?, ?)
           ORDER BY start_layer""",
        [row[key] for key in keys],
    )
    top = {}
    for target, colour in (("argument", ARGUMENT), ("answer", ANSWER)):
        some = [cell for cell in cells if cell["target"] == target]
        layers = [cell["start_layer"] for cell in some]
        panel.axvline(some[0]["before"], color=colour, linestyle=":", linewidth=1)
        panel.plot([cell["after"] for cell in some], layers, color=colour, marker="o", markersize=3)
        for cell in some:
            is_top = {"color": colour, "fontweight": "bold"} if cell["after"] == 1 else {}
            top[cell["start_layer"]] = (
                top.get(cell["start_layer"], {}) | {"s": cell["token"]} | is_top
            )
    for layer, look in top.items():
        look = {"color": "#222222"} | look
        text = printable(look.pop("s") or "?", 13)
        panel.text(
            1.03, layer, text, transform=panel.get_yaxis_transform(), va="center_baseline",
            fontsize=6, parse_math=False, **look,
        )  # fmt: skip
    panel.axhspan(
        row["start_layer"] - 0.5, row["start_layer"] + 0.5, color=OCHRE, alpha=0.3, linewidth=0
    )
    panel.set(xscale="log", ylim=(row["layers"] - 0.5, -0.5))
    panel.set_xlim(0.75, max(20, 1.5 * max(max(cell["after"], cell["before"]) for cell in cells)))
    ticks = [10**k for k in range(7) if 10**k < panel.get_xlim()[1]]
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_yticks(range(row["layers"]))
    panel.tick_params(labelsize=6.5)
    panel.set_xlabel(
        textwrap.fill(end_of(row["text"]), 46), fontsize=6, style="italic", parse_math=False
    )


def start_layers(connection):
    """Mean reciprocal rank on dev by source layer and start layer: panels models x tasks."""
    import seaborn
    from matplotlib.patches import Rectangle

    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(
        connection,
        """SELECT model, task, source_layer, start_layer, prompts,
                  max(reciprocal_rank_after) AS value
           FROM search GROUP BY ALL""",
    )
    chosen = by_cell(connection, "SELECT * FROM chosen")
    figure, panels = grid(models, tasks, 2.3, 1.6, share=False)
    most = max((row["value"] for rows in cells.values() for row in rows), default=1)
    shades = {"vmin": 0, "vmax": most, "cmap": seaborn.color_palette("mako_r", as_cmap=True)}
    mesh = None
    for cell, panel in panels.items():
        if cell not in cells:
            panel.set(xticks=[], yticks=[])
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = cells[cell]
        sources = sorted({row["source_layer"] for row in rows})
        starts = sorted({row["start_layer"] for row in rows})
        values = {(row["source_layer"], row["start_layer"]): row["value"] for row in rows}
        table = [[values.get((i, j), math.nan) for j in starts] for i in sources]
        mesh = panel.pcolormesh(table, edgecolors="white", linewidth=0.2, **shades)
        step = max(1, math.ceil(len(starts) / 8))
        panel.set_xticks([k + 0.5 for k in range(0, len(starts), step)], starts[::step])
        panel.set_yticks([k + 0.5 for k in range(len(sources))], sources)
        panel.tick_params(length=2, labelsize=6.5)
        (best,) = chosen[cell]
        corner = (starts.index(best["start_layer"]), sources.index(best["source_layer"]))
        look = {
            "fill": False,
            "edgecolor": ARGUMENT,
            "linewidth": 1.8,
            "clip_on": False,
            "zorder": 5,
        }
        panel.add_patch(Rectangle(corner, 1, 1, **look))
        panel.text(
            1, 1.02, f"n = {rows[0]['prompts']}", transform=panel.transAxes, ha="right", va="bottom",
            fontsize=6.5, color=GREY,
        )  # fmt: skip
    if mesh:
        bar = figure.colorbar(
            mesh, ax=figure.axes, location="right", shrink=0.8, aspect=40, pad=0.01
        )
        bar.set_label("Mean reciprocal rank of the answer, dev")
        bar.outline.set_visible(False)
    figure.supxlabel("Start layer: the first layer whose FFN is replaced")
    figure.supylabel("Source layer: where the o-vector was cut")
    key = patch_key("chosen setting", "none", edgecolor=ARGUMENT, linewidth=1.8)
    legend(figure, [key], columns=1)
    return figure


def controls(connection):
    """The chosen o-vector beside everything else that was put in its place: models x tasks."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(connection, "SELECT * FROM controls WHERE domain = 'in'")
    present = {row["control"] for rows in cells.values() for row in rows}
    shown = [name for name in INJECTED if name in present] or ["o-vector"]
    figure, panels = grid(models, tasks, 2.1, 0.35 + 0.17 * max(len(shown), 6))
    most = max((r["reciprocal_rank_after_high"] for c in cells.values() for r in c), default=1)
    axes = figure.axes[0]
    axes.set(xlim=(-0.03 * most, 1.04 * most), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [INJECTED[name][0] for name in shown])
    for cell, panel in panels.items():
        panel.tick_params(axis="y", length=0)
        if cell not in cells:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = {row["control"]: row for row in cells[cell]}
        best = rows["o-vector"]
        before, after = (best[f"reciprocal_rank_{when}"] for when in ("before", "after"))
        panel.axvline(before, color="black", linewidth=0.8, linestyle="--", zorder=1)
        if after > before:
            panel.axvline(
                (before + after) / 2, color="black", linewidth=0.8, linestyle=":", zorder=1
            )
        for y, name in enumerate(shown):
            if name not in rows:
                continue
            row, colour = rows[name], INJECTED[name][1][0]
            low, high = (row[f"reciprocal_rank_after_{end}"] for end in ("low", "high"))
            panel.hlines(y, low, high, color=colour, linewidth=1.1)
            panel.plot(row["reciprocal_rank_after"], y, color=colour, marker="o", markersize=4)
        note(panel, f"n = {best['units']}", 0.98, 0.03)
    figure.supxlabel("Mean reciprocal rank of the answer, in-domain test prompts")
    keys = [
        line_key(text, "-", colour, marker="o", markersize=4)
        for colour, text in (OWN, RIVALS, CONTROLS)
    ]
    keys += [line_key("before", "--", "black", linewidth=0.8)]
    keys += [line_key("half of the o-vector's lift", ":", "black", linewidth=0.8)]
    legend(figure, keys)
    return figure


def controls_by_layer(connection):
    """The chosen o-vector and its controls from every start layer, where the sweep has them."""
    models, tasks = models_of(connection), injected_tasks(connection)
    cells = by_cell(connection, EVERY_LAYER)
    tasks = {task: title for task, title in tasks.items() if task in {t for _, t in cells}}
    if not tasks:
        return nothing("no task has controls at all start layers")
    chosen = by_cell(connection, "SELECT * FROM chosen")
    # One task a model is usual: the models stand side by side.
    figure, panels = grid(tasks, models, 3.2, 2.1, share=False)
    highest = 0
    for (task, model), panel in panels.items():
        cell = (model, task)
        if cell not in cells:
            panel.set(xticks=[], yticks=[])
            say_empty(panel, None, NO_VECTOR)
            continue
        rows = cells[cell]
        for name, look in BY_LAYER.items():
            some = [row for row in rows if row["control"] == name]
            layers = sorted({row["start_layer"] for row in some})
            means = [
                mean_band([row["after"] for row in some if row["start_layer"] == layer])
                for layer in layers
            ]
            if not means:
                continue
            mean, low, high = zip(*means)
            panel.fill_between(layers, low, high, color=look["color"], alpha=0.12, linewidth=0)
            panel.plot(layers, mean, label=name, **look)
            highest = max(highest, *high)
        first = [row for row in rows if row["control"] == "o-vector"]
        before = sum(row["before"] for row in first) / len(first)
        panel.axhline(before, color="black", linewidth=0.8, linestyle="--", zorder=1)
        (best,) = chosen[cell]
        panel.axvline(best["start_layer"], color=OCHRE, alpha=0.3, linewidth=4, zorder=0)
        panel.locator_params(axis="x", integer=True)
        note(panel, f"n = {len({row['prompt_id'] for row in first})}")
    for panel in panels.values():
        panel.set_ylim(0, min(1.02, 1.15 * highest))
    figure.supxlabel("Start layer: the first layer whose FFN is replaced")
    figure.supylabel("Mean reciprocal rank of the answer, test")
    keys = [line_key(INJECTED[name][0], **look) for name, look in BY_LAYER.items()]
    keys += [line_key("before", "--", "black", linewidth=0.8)]
    keys += [line_key("chosen start layer", "-", OCHRE, alpha=0.3, linewidth=4)]
    legend(figure, keys, columns=max(2, int(figure.get_figwidth() / 1.8)))
    return figure


# Only the prompts that all start layers share: at the chosen one there are more.
EVERY_LAYER = """
WITH everywhere AS (
    SELECT DISTINCT o.model, o.ovector_task, prompt_id
    FROM outcomes AS o JOIN chosen AS c ON (o.model, o.ovector_task) = (c.model, c.task)
    WHERE split = 'test' AND domain = 'in' AND o.start_layer != c.start_layer
)
SELECT model, ovector_task AS task, control, start_layer, prompt_id,
       avg(reciprocal_rank_before) AS before, avg(reciprocal_rank_after) AS after
FROM outcomes JOIN everywhere USING (model, ovector_task, prompt_id)
WHERE split = 'test' AND domain = 'in'
GROUP BY ALL
ORDER BY ALL
"""


def parts(connection):
    """Share of the o-vector's effect that its largest parts keep, in two bases: models x tasks."""
    models, tasks = models_of(connection), injected_tasks(connection)
    if not tasks:
        return nothing(NO_TASK)
    cells = by_cell(connection, PARTS)
    figure, panels = grid(models, tasks)
    means = [0, 1]
    for cell, panel in panels.items():
        if cell not in cells:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        rows = cells[cell]
        panel.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        whole = [row for row in rows if (row["basis"], row["k"]) == ("directions", "all")]
        if mean_band([row["whole"] - row["before"] for row in whole])[1] <= 0:
            say_empty(panel, None, "no effect of the\nwhole vector to keep")
            continue
        for shift, (basis, (_, look)) in zip((-0.08, 0.08), BASES.items()):
            found = {
                k: share_band([row for row in rows if (row["basis"], row["k"]) == (basis, k)])
                for k in KEPT
                if any((row["basis"], row["k"]) == (basis, k) for row in rows)
            }
            x = [KEPT.index(k) + shift for k in found]
            panel.plot(x, [mean for mean, _, _ in found.values()], markersize=4, **look)
            for at, (mean, low, high) in zip(x, found.values()):
                panel.vlines(at, low, high, color=look["color"], linewidth=0.9)
                means.append(mean)
        note(panel, f"n = {len(whole)}", 0.98, 0.03)
    # Intervals of ratios are wide where the effect is small: the means set the axis.
    axes = figure.axes[0]
    axes.set(xlim=(-0.4, 3.4), ylim=(max(-1.5, min(means)) - 0.4, min(3, max(means)) + 0.5))
    axes.set_xticks(range(len(KEPT)), KEPT)
    axes.yaxis.set_major_formatter("{x:.0%}")
    figure.supxlabel("Largest parts of the o-vector that are kept")
    figure.supylabel("Share of the lift that stays")
    keys = [line_key(label, "-", markersize=4, **look) for label, look in BASES.values()]
    keys += [line_key("the whole vector", "--"), line_key("95 % interval", "-", linewidth=0.9)]
    legend(figure, keys)
    return figure


# The mean of the donors has no neurons: where it was chosen, parts and whole are of one donor.
PARTS = """
SELECT model, ovector_task AS task, split_part(p.control, '_', 1) AS basis,
       split_part(p.control, '_', 2) AS k, p.reciprocal_rank_before AS before,
       p.reciprocal_rank_after AS after, whole.reciprocal_rank_after AS whole
FROM outcomes AS p
JOIN outcomes AS whole
    USING (model, ovector_task, task, domain, split, prompt_id, start_layer, donor, source_layer)
WHERE split = 'test' AND domain = 'in' AND whole.control IN ('o-vector', 'donor')
  AND (p.control LIKE 'neurons\\_%' ESCAPE '\\' OR p.control LIKE 'directions\\_%' ESCAPE '\\')
ORDER BY model, task, basis, k, prompt_id
"""


def tokenization(connection):
    """Effect by tokens of argument and answer and letters of the first token (Appendix E)."""
    models = models_of(connection)
    if not injected_tasks(connection):
        return nothing(NO_TASK)
    found: dict = {}
    for row in records(connection, LETTERS):
        found.setdefault(row["model"], []).append(row)
    figure, panels = grid(models, LENGTHS, 2.1, 1.6)
    axes = figure.axes[0]
    axes.set(xlim=(0.5, LONGEST + 0.5), ylim=(-0.02, 1.17), yticks=(0, 0.5, 1))
    axes.set_xticks(range(1, LONGEST + 1), [*range(1, LONGEST), f"{LONGEST}+"])
    for (model, length), panel in panels.items():
        rows = found.get(model, [])
        if not rows:
            say_empty(panel, None, textwrap.fill(NO_VECTOR, 16))
            continue
        for task in sorted({row["task"] for row in rows}):
            some = grouped([row for row in rows if row["task"] == task], length)
            means = {k: sum(r["after"] for r in v) / len(v) for k, v in some.items() if len(v) > 2}
            panel.plot(
                *zip(*means.items()) if means else ((), ()), color=PALE, linewidth=0.8, zorder=1
            )
        groups = grouped(rows, length)
        for name, colour, face, shift in (
            ("before", GREY, "white", -0.1),
            ("after", ANSWER, ANSWER, 0.1),
        ):
            x = [k + shift for k in groups]
            mean, low, high = zip(*(mean_band([r[name] for r in g]) for g in groups.values()))
            sure = [k for k, g in enumerate(groups.values()) if len(g) >= 5]
            bars = ([part[k] for k in sure] for part in (x, low, high))
            panel.vlines(*bars, color=colour, linewidth=0.9)
            look = {"marker": "o", "markersize": 3.5, "markerfacecolor": face, "linestyle": "none"}
            panel.plot(x, mean, color=colour, **look)
        for k, group in groups.items():
            panel.text(k, 1.14, len(group), ha="center", va="top", fontsize=6, color=GREY)
    figure.supylabel("Mean reciprocal rank of the answer")
    figure.supxlabel("Number of tokens or letters; above: n")
    keys = [line_key("before", "-", GREY, marker="o", markersize=4, markerfacecolor="white")]
    keys += [line_key("after, chosen o-vector", "-", ANSWER, marker="o", markersize=4)]
    keys += [line_key("after, each task (n > 2)", "-", PALE)]
    keys += [line_key("95 % interval (n > 4)", "-", linewidth=0.9)]
    legend(figure, keys)
    return figure


LETTERS = f"""
SELECT o.model, o.ovector_task AS task,
       least(argument_length, {LONGEST}) AS argument_length,
       least(answer_length, {LONGEST}) AS answer_length,
       least(first_token_letters, {LONGEST}) AS first_token_letters,
       reciprocal_rank_before AS before, reciprocal_rank_after AS after
FROM outcomes AS o
JOIN chosen AS c ON (o.model, o.ovector_task, o.start_layer) = (c.model, c.task, c.start_layer)
JOIN prompts AS p
    ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
WHERE control = 'o-vector' AND o.split = 'test' AND domain = 'in'
ORDER BY o.model, o.ovector_task, o.prompt_id
"""


def relations(connection):
    """Effect by kind of relation, a point each task: a pair of panels each model."""
    import matplotlib.figure

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
                if row["units"] < FEW_PROMPTS:
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


def injected_tasks(connection) -> dict[str, str]:
    """{task: title} of the tasks whose o-vectors were injected, by title."""
    query = "SELECT task, title FROM tasks WHERE injected ORDER BY title, task"
    return dict(connection.execute(query).fetchall())


def outside_names(connection) -> dict[str, str]:
    """{task: name of its out-of-domain set}: another task's title or a group of its own."""
    query = """SELECT DISTINCT ON (ovector_task) ovector_task,
                      if(o.task = ovector_task, "group", title)
               FROM effects AS o JOIN tasks AS t ON o.task = t.task
               LEFT JOIN (SELECT DISTINCT task, "group" FROM prompts WHERE out_of_domain) AS p
                   ON o.task = p.task
               WHERE domain = 'out' ORDER BY ALL"""
    return dict(connection.execute(query).fetchall())


def settings_of(connection) -> dict:
    """{(model, task, domain): row of `effects`} of the chosen o-vectors."""
    rows = records(
        connection,
        """SELECT e.* FROM effects AS e
           JOIN chosen AS c
               ON (e.model, e.ovector_task, e.start_layer) = (c.model, c.task, c.start_layer)
           WHERE control = 'o-vector'""",
    )
    return {(row["model"], row["ovector_task"], row["domain"]): row for row in rows}


def by_cell(connection, query: str) -> dict:
    """{(model, task): rows of a query}."""
    found: dict = {}
    for row in records(connection, query):
        found.setdefault((row["model"], row["task"]), []).append(row)
    return found


def grouped(rows: list[dict], key: str) -> dict:
    """{value of a column: rows}, by value; rows without a value are left out."""
    values = sorted({row[key] for row in rows if row[key]})
    return {value: [row for row in rows if row[key] == value] for value in values}


def mean_band(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): a mean over prompts with its bootstrap 95 % interval."""
    import numpy as np

    from vecsweep.stages.summary import resampled_means

    drawn = resampled_means(np.array(values, float), RESAMPLES, seed=0)
    return (float(np.mean(values)), *map(float, np.quantile(drawn, [0.025, 0.975])))


def share_band(rows: list[dict]) -> tuple[float, float, float]:
    """(share, low, high): lift of a part over the lift of the whole, on the same prompts."""
    import numpy as np

    from vecsweep.stages.summary import resampled_means

    lifts = np.array([[row["after"] - row["before"], row["whole"] - row["before"]] for row in rows])
    part, whole = lifts.mean(0)
    drawn = resampled_means(lifts, RESAMPLES, seed=0)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(part / whole), float(low), float(high)
