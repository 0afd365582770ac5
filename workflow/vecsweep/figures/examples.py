"""Figures of single prompts: top tokens by layer, ranks by start layer (paper Figures 2, 4)."""

import textwrap

import matplotlib.figure
import seaborn
from matplotlib.patches import Rectangle

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    ARGUMENT,
    NO_VECTOR,
    OCHRE,
    Empty,
    end_of,
    injected_tasks,
    legend,
    line_key,
    models_of,
    patch_key,
    printable,
    records,
    tasks_of,
    text_key,
)

SITES = {
    "resid_mid": "after\nattention",
    "attention_alone": "attention\nalone",
    "ffn_alone": "FFN\nalone",
    "resid_post": "after\nFFN",
}


def example(connection):
    """Top token after each sublayer, layer by layer, one prompt a model (paper Fig. 2)."""
    models, tasks = models_of(connection), tasks_of(connection)
    chosen = by_model(connection, "FROM stage_examples")
    if not chosen:
        raise Empty("no prompt was kept")
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


def by_model(connection, query: str) -> list[dict]:
    """The rows of a query with one for a model, in the models' order."""
    rows = {row["model"]: row for row in records(connection, query)}
    return [rows[model] for model in models_of(connection) if model in rows]


def draw_tokens(connection, panel, row: dict) -> None:
    """The table of top tokens of one prompt: a row each layer, a column each decoded site."""
    keys = ("model", "task", "prompt_set", "prompt_id")
    query = f"FROM top_cells WHERE {' AND '.join(f'{key} = ${key}' for key in keys)}"
    cells = records(connection, f"{query} ORDER BY layer, site", {key: row[key] for key in keys})
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
        # A layer can have both: the argument before its FFN, the answer after it.
        start = applied + 0.5 * (last == applied)
        bands += [(start, applied + 1, APPLIED), (applied + 1, layers, ANSWER)]
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


def intervention_example(connection):
    """One prompt under the o-vector from every start layer (paper Figure 4)."""
    models, tasks = models_of(connection), tasks_of(connection)
    chosen = by_model(connection, "FROM intervention_examples")
    if injected_tasks(connection) and not chosen:
        raise Empty(NO_VECTOR)
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


def draw_start_layers(connection, panel, row: dict) -> None:
    """Ranks of one prompt's argument and answer, and its top token, a row each start layer."""
    cells = records(
        connection,
        """FROM start_layer_ranks WHERE (model, task, prompt_id) = (?, ?, ?)
           ORDER BY start_layer""",
        [row[key] for key in ("model", "task", "prompt_id")],
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
        text = printable(look.pop("s"), 13)
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
