"""Figures of the stages: what the decoded residual stream shows by layer (paper Figs 2, 3)."""

import math
import textwrap

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    ARGUMENT,
    FEW_PROMPTS,
    GREY,
    NEUTRAL,
    OCHRE,
    PALE,
    PURPLE,
    band_key,
    end_of,
    grid,
    in_words,
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

PATTERNS = {
    "argument_function": ("argument, then function", APPLIED),
    "direct": ("direct", PALE),
    "incorrect": ("incorrect", NEUTRAL),
}
APPLIERS = {
    "by_ffn": ("FFN", PURPLE),
    "by_attention": ("attention", OCHRE),
    "by_both_or_joint": ("both or jointly", NEUTRAL),
}
SITES = {
    "resid_mid": "after\nattention",
    "attention_alone": "attention\nalone",
    "ffn_alone": "FFN\nalone",
    "resid_post": "after\nFFN",
}
# The argument formed where its mean reciprocal rank reached this; below, a crossover says nothing.
FORMED = 0.2
# The paper's "about 2/3 of the depth" (section 5).
PAPER_DEPTH = 2 / 3


def reciprocal_rank(connection):
    """Reciprocal rank of argument and answer by depth: panels models x tasks (paper Figs 2, 3)."""
    figure, panels = depth_grid(models_of(connection), tasks_of(connection))
    counts = prompt_counts(connection, "abstractive")
    curves = curves_of(connection, "abstractive")
    crossings = crossings_of(connection)
    for cell, panel in panels.items():
        correct, count = counts.get(cell, (0, 0))
        if cell not in curves:
            say_empty(panel, count)
            continue
        draw_curves(panel, curves[cell])
        if cell in crossings:
            panel.axvline(
                crossings[cell]["depth"], color=GREY, linewidth=0.8, linestyle=":", zorder=0
            )
        note(panel, f"n = {correct} of {count}")
    legend(figure, [*target_keys(), band_key(), line_key("crossover", ":")])
    return figure


def extractive(connection):
    """Abstractive and extractive prompts, answer and argument by depth (paper Appendix A)."""
    lines = {"abstractive": "-", "extractive": (0, (3, 1.2))}
    counts = {name: prompt_counts(connection, name) for name in lines}
    curves = {name: curves_of(connection, name) for name in lines}
    both = {task for _, task in counts["abstractive"].keys() & counts["extractive"].keys()}
    tasks = {task: title for task, title in tasks_of(connection).items() if task in both}
    figure, panels = depth_grid(models_of(connection), tasks)
    if not tasks:
        say_empty(figure.axes[0], None, "no task has extractive prompts")
    for cell, panel in panels.items():
        drawn = [name for name in lines if cell in curves[name]]
        for name in drawn:
            draw_curves(panel, curves[name][cell], lines[name], alpha=0.12)
        if drawn:
            numbers = [f"{name} n = {counts[name].get(cell, (0,))[0]}" for name in lines]
            note(panel, "\n".join(numbers))
        else:
            say_empty(panel, counts["abstractive"].get(cell, (0, 0))[1])
    keys = [line_key(name, line) for name, line in lines.items()]
    legend(figure, [*target_keys(), *keys, band_key()])
    return figure


def patterns(connection):
    """Shares of the patterns, and of the sublayer that applied the function, by model and task."""
    import matplotlib.figure

    models, tasks = models_of(connection), tasks_of(connection)
    rows = records(
        connection,
        """SELECT *,
                  wilson_low(argument_function, prompts) AS argument_function_low,
                  wilson_high(argument_function, prompts) AS argument_function_high,
                  wilson_low(by_ffn, prompts * correct) AS by_ffn_low,
                  wilson_high(by_ffn, prompts * correct) AS by_ffn_high
           FROM patterns WHERE prompt_set = 'abstractive'""",
    )
    rows = {(row["model"], row["task"]): row for row in rows}
    pairs = 1 if len(models) <= 3 else 2
    down = math.ceil(len(models) / pairs)
    size = (7.2 * pairs, down * (0.55 + 0.2 * len(tasks)) + 0.9)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, 2 * pairs, squeeze=False).reshape(-1, 2)
    for pair in axes[len(models) :]:
        for panel in pair:
            panel.set_axis_off()
    for (model, label), pair in zip(models.items(), axes):
        for panel, parts in zip(pair, (PATTERNS, APPLIERS)):
            for y, task in enumerate(tasks):
                draw_shares(panel, y, rows.get((model, task)), parts)
            panel.set(xlim=(0, 1), ylim=(len(tasks) - 0.5, -0.5), xticks=(0, 0.25, 0.5, 0.75, 1))
            panel.xaxis.set_major_formatter("{x:.0%}")
            panel.set_yticks(range(len(tasks)), tasks.values() if panel is pair[0] else [])
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
        pair[0].set_title(label, loc="left")
    for pair in axes[max(0, len(models) - pairs) : len(models)]:
        pair[0].set_xlabel("Share of all prompts")
        pair[1].set_xlabel("Share of the prompts answered correctly")
    # A legend fills its columns first: the patterns make its first row, the sublayers its second.
    keys = [patch_key("Pattern:", "none"), patch_key("Applied by:", "none")]
    for both in zip(PATTERNS.values(), APPLIERS.values()):
        keys += [patch_key(*part) for part in both]
    legend(figure, [*keys, interval_key()], columns=5)
    return figure


def crossover(connection):
    """Depth of the crossover against model size, a marker each task (paper section 5)."""
    import matplotlib.figure

    tasks = tasks_of(connection)
    sizes = dict(connection.execute("SELECT model, parameters FROM models").fetchall())
    found = list(crossings_of(connection).values())
    shown = [task for task in tasks if task in {row["task"] for row in found}]
    wide = max(6.4, 3 + 0.1 * len(sizes) * len(shown))
    high = 3.2 + 0.05 * max(map(len, sizes))
    figure = matplotlib.figure.Figure(figsize=(wide, high), layout="constrained")
    panel = figure.subplots()
    low, high = min(sizes.values()) / 1.6, max(sizes.values()) * 1.6
    panel.set(xscale="log", xlim=(low, high), ylim=(0, 1.04), xlabel="Parameters of the model")
    # Tasks stand side by side, or they would hide each other: this far apart, in decades.
    apart = min(0.02, 0.7 * math.log10(high / low) / len(sizes) / max(len(shown), 1))
    keys = []
    for k, task in enumerate(shown):
        look = task_look(k)
        shift = 10 ** (apart * (k - (len(shown) - 1) / 2))
        for row in (row for row in found if row["task"] == task):
            at = row["parameters"] * shift
            panel.vlines(at, row["low"], row["high"], color=look["color"], linewidth=0.9)
            few = {"markerfacecolor": "white"} if row["prompts"] < FEW_PROMPTS else {}
            panel.plot(at, row["depth"], **look, **few)
        keys.append(line_key(tasks[task], "none", **look))
    panel.axhline(PAPER_DEPTH, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    panel.set_ylabel("Depth of the crossover\n(layer + 1) / layers")
    parameter_ticks(panel)
    name_models(panel, sizes)
    if not found:
        say_empty(panel, None, "nowhere did the answer overtake an argument that had formed")
    if any(row["prompts"] < FEW_PROMPTS for row in found):
        look = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
        keys.append(line_key(f"n < {FEW_PROMPTS}", "none", **look))
    keys.append(line_key("the paper's 2/3", "--"))
    figure.legend(handles=keys, loc="outside right center")
    return figure


def example(connection):
    """Top token after each sublayer, layer by layer, one prompt a model (paper Fig. 2)."""
    import matplotlib.figure

    chosen = records(connection, EXAMPLES)
    models, tasks = models_of(connection), tasks_of(connection)
    if not chosen:
        return nothing("no prompt was kept")
    deepest = max(row["layers"] for row in chosen)
    size = (max(5.4, 2.55 * len(chosen) + 0.3), 0.155 * deepest + 2.2)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    for panel, row in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen):
        draw_tokens(connection, panel, row)
        words = f"{printable(row['argument'], 16)} → {printable(row['answer'], 16)}"
        model = textwrap.fill(models[row["model"]], 32)
        panel.set_title(f"{model}\n{tasks[row['task']]}: {words}")
    figure.axes[0].set_ylabel("Layer")
    shading = figure.colorbar(
        panel.collections[0], ax=figure.axes, location="bottom", shrink=0.4, aspect=40, pad=0.01
    )
    shading.set_label("Probability of the top token")
    shading.outline.set_visible(False)
    keys = [
        text_key("argument", ARGUMENT),
        text_key("answer", ANSWER),
        patch_key("argument formation", ARGUMENT),
        patch_key("function application", APPLIED),
        patch_key("saturation", ANSWER),
        patch_key("update that applied it", "none", edgecolor=APPLIED, linewidth=1.5),
    ]
    legend(figure, keys, columns=3)
    return figure


# The largest models at most, for each the prompt that shows the stages best: the pattern
# argument-function, applied by the FFN, of the task capitals, with words of one token, the first.
EXAMPLES = """
SELECT s.*, argument, answer, text, layers
FROM (
    SELECT s.*, argument, answer, text, layers, parameters,
           row_number() OVER (PARTITION BY model ORDER BY
               list_contains(answer_tokens, argument_token),
               pattern != 'argument-function', pattern = 'incorrect', s.task != 'capitals',
               function_site IS DISTINCT FROM 'ffn', argument_length + answer_length,
               s.task, prompt_id) AS place
    FROM stages AS s
    JOIN prompts USING (model, task, prompt_set, prompt_id)
    JOIN models USING (model)
    WHERE prompt_set = 'abstractive'
) AS s
WHERE place = 1
QUALIFY row_number() OVER (ORDER BY parameters DESC, model) <= 4
ORDER BY parameters, model
"""


def draw_tokens(connection, panel, row: dict) -> None:
    """The table of top tokens of one prompt: a row each layer, a column each decoded site."""
    import seaborn
    from matplotlib.patches import Rectangle

    # Both tables are filtered, column by column: each may have 100 million rows.
    keys = ("model", "task", "prompt_set", "prompt_id")
    one = " AND ".join(f"{key} = ${key}" for key in keys)
    cells = records(
        connection,
        f"""SELECT layer, site, token, t.probability,
                   bool_or(rank = 0) FILTER (target = 'argument') AS is_argument,
                   bool_or(rank = 0) FILTER (target = 'answer') AS is_answer
            FROM (FROM top_tokens WHERE position = 0 AND {one}) AS t
            JOIN (FROM lens WHERE {one}) USING (layer, site)
            GROUP BY ALL ORDER BY layer, site""",
        {key: row[key] for key in keys},
    )
    sites = [site for site in SITES if site in {cell["site"] for cell in cells}]
    layers = row["layers"]
    shades = [[0.0] * len(sites) for _ in range(layers)]
    for cell in cells:
        x, y = sites.index(cell["site"]), cell["layer"]
        shades[y][x] = cell["probability"]
        colour = ANSWER if cell["is_answer"] else ARGUMENT if cell["is_argument"] else "#222222"
        weight = "bold" if cell["is_answer"] or cell["is_argument"] else "normal"
        text = printable(cell["token"], 14 if len(sites) < 3 else 10)
        look = {"fontsize": 6, "color": colour, "fontweight": weight, "parse_math": False}
        panel.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", **look)
    # Light enough at probability 1 for text on top.
    shading = seaborn.light_palette("#C2C2C2", as_cmap=True)
    seaborn.heatmap(shades, vmin=0, vmax=1, cmap=shading, cbar=False, linewidths=0.5, ax=panel)
    first, last, applied = (row[k] for k in ("argument_first", "argument_last", "function_layer"))
    bands = []
    if first is not None:
        bands.append((first, last + 1, ARGUMENT))
    if applied is not None:
        bands += [(applied, applied + 1, APPLIED), (applied + 1, layers, ANSWER)]
    width = 0.06 * len(sites)
    for top, bottom, colour in bands:
        panel.add_patch(
            Rectangle((-width, top), width * 0.7, bottom - top, color=colour, linewidth=0)
        )
    for site in appliers(row["function_site"], sites):
        corner = (sites.index(site), applied)
        panel.add_patch(
            Rectangle(
                corner, 1, 1, fill=False, edgecolor=APPLIED, linewidth=1.5, zorder=5, clip_on=False
            )
        )
    panel.set_xlim(-width, len(sites))
    names = [SITES[site] for site in sites]
    if "resid_mid" not in sites:
        names[-1] = "after\nblock"
    panel.set_xticks([k + 0.5 for k in range(len(sites))], names)
    panel.xaxis.tick_top()
    panel.set_yticks([k + 0.5 for k in range(layers)], range(layers), rotation=0)
    panel.tick_params(length=0, labelsize=6.5)
    panel.set_xlabel(
        textwrap.fill(end_of(row["text"]), 46), fontsize=6, style="italic", parse_math=False
    )


def appliers(function_site, sites: list[str]) -> list[str]:
    """The decoded sites that show which update applied the function, as in `stages.sql`."""
    parallel = "resid_mid" not in sites
    return {
        None: [],
        "ffn": ["ffn_alone" if parallel else "resid_post"],
        "attention": ["attention_alone" if parallel else "resid_mid"],
        "both": ["attention_alone", "ffn_alone"],
        "joint": ["resid_post"],
    }[function_site]


def draw_curves(panel, curves, line="-", alpha=0.2) -> None:
    """Mean reciprocal rank by depth with 95 % bands, from rows of table `curves`."""
    for target, colour in (("argument", ARGUMENT), ("answer", ANSWER)):
        rows = curves[curves.target == target]
        panel.fill_between(rows.depth, rows.low, rows.high, color=colour, alpha=alpha, linewidth=0)
        panel.plot(rows.depth, rows.reciprocal_rank, color=colour, linestyle=line)


def draw_shares(panel, y: int, row: dict | None, parts: dict) -> None:
    """A stacked bar of shares at height y, with a 95 % interval of the first share."""
    row = (row or {"prompts": 0, "correct": 0}) | {}
    row["incorrect"] = 1 - row["correct"]
    count = row["prompts"] if parts is PATTERNS else round(row["prompts"] * row["correct"])
    panel.text(1.02, y, f"n = {count}", va="center", fontsize=6.5, color=GREY)
    if not count:
        text = "no prompts" if not row["prompts"] else "none answered correctly"
        panel.text(0.01, y, text, va="center", fontsize=6.5, style="italic", color=GREY)
        return
    left = 0
    for column, (_, colour) in parts.items():
        panel.barh(y, row[column], 0.74, left, color=colour, edgecolor="white", linewidth=0.5)
        left += row[column]
    first = next(iter(parts))
    look = {"color": "black", "linewidth": 0.8, "marker": "|", "markersize": 4, "zorder": 3}
    panel.plot([row[f"{first}_low"], row[f"{first}_high"]], [y, y], **look)


def depth_grid(models: dict, tasks: dict):
    """Panels models x tasks of mean reciprocal rank by depth."""
    figure, panels = grid(models, tasks)
    figure.axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.supxlabel("Depth, (layer + 1) / layers")
    figure.supylabel("Mean reciprocal rank")
    return figure, panels


def prompt_counts(connection, prompt_set: str) -> dict:
    """{(model, task): (prompts answered correctly, prompts)}."""
    query = """SELECT model, task, count(*) FILTER (pattern != 'incorrect'), count(*)
               FROM stages WHERE prompt_set = ? GROUP BY ALL"""
    rows = connection.execute(query, [prompt_set]).fetchall()
    return {(model, task): (correct, count) for model, task, correct, count in rows}


def curves_of(connection, prompt_set: str) -> dict:
    """{(model, task): rows of `curves` by layer}, prompts answered correctly."""
    query = """SELECT * FROM curves WHERE subset = 'correct' AND prompt_set = ?
               ORDER BY model, task, target, layer"""
    table = connection.execute(query, [prompt_set]).df()
    return dict(list(table.groupby(["model", "task"])))


def crossings_of(connection) -> dict:
    """{(model, task): row of `crossovers`}, prompts answered correctly, where there is a crossing.

    The answer must overtake an argument that formed before: one that first reached FORMED. (Of
    two curves near zero one always leads, and an argument may also rise after the answer.)
    """
    query = """SELECT c.model, c.task, parameters, c.prompts, c.depth, c.low, c.high
               FROM crossovers AS c JOIN models USING (model)
               JOIN curves AS v USING (model, task, prompt_set, subset)
               WHERE prompt_set = 'abstractive' AND subset = 'correct'
                 AND target = 'argument' AND v.depth < c.depth
               GROUP BY ALL HAVING max(v.reciprocal_rank) >= ? AND c.low IS NOT NULL
               ORDER BY parameters, c.model, c.task"""
    rows = records(connection, query, [FORMED])
    return {(row["model"], row["task"]): row for row in rows}


def parameter_ticks(panel) -> None:
    """Ticks 100 M, 200 M, 500 M, 1 B ... on a log axis of parameters."""
    low, high = panel.get_xlim()
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10**decade for decade in range(15) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    panel.set_xticks(ticks, [in_words(tick) for tick in ticks])
    panel.set_xticks([], minor=True)


def name_models(panel, sizes: dict) -> None:
    """Names of models above the panel, apart from each other, a thin line to each one's size."""
    low, high = (math.log(x) for x in panel.get_xlim())
    order = sorted(sizes, key=lambda model: (sizes[model], model))
    true = [(math.log(sizes[model]) - low) / (high - low) for model in order]
    places = spread(true, 0.045)
    for model, at, place in zip(order, true, places):
        look = {"color": GREY, "linewidth": 0.6, "clip_on": False}
        panel.axvline(sizes[model], color="#E8E8E8", linewidth=0.6, zorder=0)
        panel.plot([at, place], [1, 1.05], transform=panel.transAxes, **look)
        panel.text(
            place, 1.06, model, rotation=45, ha="left", va="bottom", rotation_mode="anchor",
            transform=panel.transAxes, fontsize=6.5, parse_math=False,
        )  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Sorted places moved as little as needed to stand `gap` apart."""
    moved = list(places)
    for _ in range(200):
        for k in range(len(moved) - 1):
            lack = gap - (moved[k + 1] - moved[k])
            if lack > 0:
                moved[k] -= lack / 2
                moved[k + 1] += lack / 2
    return moved


def target_keys():
    return [line_key("argument", "-", ARGUMENT), line_key("answer", "-", ANSWER)]


def interval_key():
    return line_key("95 % interval of the first share", "-", "black", linewidth=0.8)
