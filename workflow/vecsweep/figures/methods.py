"""Figures of the vector methods side by side, and of the o-vector's parts."""

from vecsweep.figures.drawing import (
    ANSWER,
    APPLIED,
    GREY,
    NO_VECTOR,
    OCHRE,
    PURPLE,
    by_cell,
    legend,
    line_key,
    say_empty,
    vector_sheet,
)

# Labels and colours of what was put in: vectors of the task's donors, rivals that may well know the
# answer, and controls that must not.
OWN, RIVALS, CONTROLS = (ANSWER, "o-vectors of the task"), (PURPLE, "rivals"), (GREY, "controls")
METHODS = {
    "o-vector": ("o-vector, one donor", OWN),
    "mean": ("mean of the layer's donors", OWN),
    "donor": ("o-vectors of other donors", OWN),
    "difference": ("difference of means", RIVALS),
    "neurons_1": ("o-vector's largest neuron", RIVALS),
    "neurons_10": ("o-vector's 10 largest neurons", RIVALS),
    "neurons_100": ("o-vector's 100 largest neurons", RIVALS),
    "task vector": ("task vector", RIVALS),
    "function vector": ("function vector", RIVALS),
    "rival": ("another task's mean", CONTROLS),
    "unrelated": ("FFN on random words", CONTROLS),
    "zero": ("zero (FFNs dropped)", CONTROLS),
    "random": ("random, same norm", CONTROLS),
}
# What a method's vector does with the answer, by its marker (column `transfer`).
TRANSFERS = {
    "argument": ("own answer above chance", {}),
    "class": ("not surely above", {"markerfacecolor": "white"}),
}
NO_RISE = ("no sure rise", {"marker": "x"})
BY_LAYER = {
    "o-vector": {"color": ANSWER, "linestyle": "-", "linewidth": 1.8},
    "mean": {"color": ANSWER, "linestyle": (0, (1, 1)), "linewidth": 1.8},
    "difference": {"color": PURPLE, "linestyle": "-"},
    "task vector": {"color": PURPLE, "linestyle": (0, (5, 1.5))},
    "function vector": {"color": PURPLE, "linestyle": (0, (1, 1)), "linewidth": 1.8},
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


def methods(connection):
    """Every method at its own best setting, on the same test prompts: models x tasks."""

    def star(panel, y, name, row, look):
        # Marked: differs from the o-vector, all methods and tasks of the model accounted for.
        if row["p_holm"] is not None and row["p_holm"] < 0.05:
            # In a column of their own: on a line they would not be seen.
            at = {"xycoords": panel.get_yaxis_transform(), "textcoords": "offset points"}
            panel.annotate("*", (1, y), (1, -5), **at, fontsize=9, annotation_clip=False)
        return look

    text = "Mean reciprocal rank of the answer after, in-domain test prompts"
    lines = {"reciprocal_rank_before": ("before", "--")}
    star_look = {"marker": (6, 2, 0), "markersize": 5}
    key = line_key("differs from the o-vector (Holm)", "none", "black", **star_look)
    return compared(connection, "reciprocal_rank_after", text, lines, star, [key])


def others_answers(connection):
    """The own answer's place among all answers of the task, under every method: models x tasks."""

    def fill(panel, y, name, row, look):
        return look | TRANSFERS.get(row["transfer"], NO_RISE)[1]

    text = "Mean reciprocal place of the own answer\namong all answers of the task, after"
    lines = {"among_before": ("before", "--"), "among_chance": ("chance", ":")}
    keys = [
        line_key(label, "none", "black", **({"marker": "o", "markersize": 4} | look))
        for label, look in (*TRANSFERS.values(), NO_RISE)
    ]
    return compared(connection, "among_after", text, lines, fill, keys)


def compared(connection, measure: str, text: str, lines: dict, mark, keys=()):
    """A measure of every method with its interval, a row each: models x tasks.

    `text` labels it; `lines` are columns that are the same for all methods, with (label, line
    style); `mark(panel, y, method, row, look)` adds to a row and gives its marker's look; `keys`
    explain that.
    """
    cells = by_cell(connection, "SELECT * FROM methods WHERE domain = 'in'")
    present = {row["method"] for rows in cells.values() for row in rows}
    shown = [name for name in METHODS if name in present | {"o-vector"}]
    high = 0.3 + 0.15 * max(len(shown), 6)
    figure, panels = vector_sheet(connection, cells, high=high, left=1.9)
    most = max((r[f"{measure}_high"] for cell in panels for r in cells[cell]), default=1)
    axes = figure.axes[0]
    axes.set(xlim=(-0.03 * most, 1.06 * most), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [METHODS[name][0] for name in shown])
    thin = {"color": "black", "linewidth": 0.8}
    for panel in figure.axes:
        panel.tick_params(axis="y", length=0)
    for cell, panel in panels.items():
        rows = {row["method"]: row for row in cells[cell]}
        for column, (_, style) in lines.items():
            panel.axvline(cells[cell][0][column], linestyle=style, zorder=1, **thin)
        if "o-vector" not in rows:  # a contender needs no donor
            # In the places of the o-vector and of the mean, which are not there either.
            at = {"xy": (0.5, 0.5), "xycoords": panel.get_yaxis_transform()}
            look = {
                "ha": "center",
                "va": "center",
                "style": "italic",
                "color": GREY,
                "fontsize": 6.5,
            }
            under = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            panel.annotate(NO_VECTOR.replace("donor ", "donor\n"), **at, bbox=under, **look)
        for y, name in enumerate(shown):
            if name in rows:
                row, colour = rows[name], METHODS[name][1][0]
                ends = row[f"{measure}_low"], row[f"{measure}_high"]
                panel.hlines(y, *ends, color=colour, linewidth=1.1)
                look = {"color": colour, "marker": "o", "markersize": 4}
                panel.plot(row[measure], y, **mark(panel, y, name, row, look))
    figure.supxlabel(text)
    kinds = [
        line_key(label, "-", colour, marker="o", markersize=4)
        for colour, label in (OWN, RIVALS, CONTROLS)
    ]
    kinds += [line_key(label, style, **thin) for label, style in lines.values()]
    legend(figure, [*kinds, *keys])
    return figure


def methods_by_layer(connection):
    """Every method from every start layer, at the best of its other settings: models x tasks."""
    cells = by_cell(connection, "FROM layer_bands ORDER BY ALL")
    chosen = by_cell(connection, "SELECT * FROM chosen WHERE method = 'o-vector'")
    figure, panels = vector_sheet(connection, cells, sharex=False, sharey=False)
    for cell, panel in panels.items():
        rows = cells[cell]
        for name, look in BY_LAYER.items():
            some = [row for row in rows if row["method"] == name]
            layers, mean, low, high = (
                [row[key] for row in some] for key in ("start_layer", "after", "low", "high")
            )
            if name in ("o-vector", "difference"):  # seven bands would hide one another
                panel.fill_between(layers, low, high, color=look["color"], alpha=0.12, linewidth=0)
            panel.plot(layers, mean, label=name, **look)
        panel.axhline(rows[0]["before"], color="black", linewidth=0.8, linestyle="--", zorder=1)
        for best in chosen.get(cell, []):
            panel.axvline(best["start_layer"], color=OCHRE, alpha=0.3, linewidth=4, zorder=0)
        panel.locator_params(axis="x", integer=True, nbins=5)
        panel.locator_params(axis="y", nbins=4)
        panel.set_ylim(0, min(1.02, 1.1 * max(row["high"] for row in rows)))
    figure.supxlabel("Start layer: the first layer that is edited")
    figure.supylabel("Mean reciprocal rank of the answer, dev")
    drawn = {row["method"] for cell in panels for row in cells[cell]}
    keys = [line_key(METHODS[name][0], **look) for name, look in BY_LAYER.items() if name in drawn]
    keys += [line_key("before", "--", "black", linewidth=0.8)]
    keys += [line_key("the o-vector's chosen start layer", "-", OCHRE, alpha=0.3, linewidth=4)]
    legend(figure, keys)
    return figure


def parts(connection):
    """Share of the o-vector's effect that its largest parts keep, in two bases: models x tasks."""
    cells = by_cell(connection, "FROM part_bands")
    figure, panels = vector_sheet(connection, cells)
    means = [0, 1]
    for cell, panel in panels.items():
        rows = cells[cell]
        found = {(row["basis"], row["k"]): row for row in rows}
        whole = found["directions", "all"]
        if whole["whole_low"] <= 0:
            say_empty(panel, "no effect of the\nwhole vector to keep")
            continue
        panel.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        for shift, (basis, (_, look)) in zip((-0.08, 0.08), BASES.items()):
            some = {k: found[basis, k] for k in KEPT if (basis, k) in found}
            x = [KEPT.index(k) + shift for k in some]
            panel.plot(x, [row["share"] for row in some.values()], markersize=4, **look)
            for at, row in zip(x, some.values()):
                panel.vlines(at, row["low"], row["high"], color=look["color"], linewidth=0.9)
                means.append(row["share"])
    # Intervals of ratios are wide where the effect is small: the means set the axis.
    axes = figure.axes[0]
    axes.set(xlim=(-0.4, 3.4), ylim=(max(-1.5, min(means)) - 0.4, min(3, max(means)) + 0.5))
    axes.set_xticks(range(len(KEPT)), KEPT)
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.set_major_formatter("{x:.0%}")
    figure.supxlabel("Largest parts of the o-vector that are kept")
    figure.supylabel("Share of the lift that stays")
    keys = [line_key(label, "-", markersize=4, **look) for label, look in BASES.values()]
    keys += [line_key("the whole vector", "--"), line_key("95 % interval", "-", linewidth=0.9)]
    legend(figure, keys)
    return figure
