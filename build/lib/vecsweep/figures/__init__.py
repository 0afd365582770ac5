"""Stage `figures`: the figures of the paper and of this sweep, each from the database alone.

A new figure is a function in a module here (a read-only connection in, a matplotlib Figure out),
an entry in FIGURES, and its caption `workflow/report/NAME.rst`; it runs without the others.
"""

from pathlib import Path
from typing import Callable, NamedTuple

from vecsweep import Problem
from vecsweep.figures import ablations, ovectors, stages
from vecsweep.figures.drawing import style
from vecsweep.files import replacing


def run(args):
    """Draw one figure; the same database gives the same bytes."""
    import duckdb
    import matplotlib

    if args.settings["name"] not in FIGURES:
        raise Problem(f"no figure '{args.settings['name']}'; there are {', '.join(FIGURES)}")
    try:
        # One thread gives rows in one order, and equal figures are equal files. Figures are drawn
        # on the login node of a cluster: they must not take its memory.
        limits = {"threads": 1, "memory_limit": "2GB"}
        connection = duckdb.connect(str(args.database), read_only=True, config=limits)
    except duckdb.Error as error:
        raise Problem(f"cannot read {args.database}: {' '.join(str(error).split())}") from error
    with connection, matplotlib.rc_context(style()):
        figure = FIGURES[args.settings["name"]].draw(connection)
        # Without dates and versions, so that equal figures are equal files.
        with replacing(args.svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        with replacing(args.png) as temporary:
            figure.savefig(temporary, format="png", dpi=300, metadata={"Software": None})


class Figure(NamedTuple):
    """How to draw a figure, and how the report lists it; a new `version` draws it again."""

    draw: Callable
    version: int
    title: str
    category: str


FIGURES = {
    "reciprocal_rank": Figure(stages.reciprocal_rank, 1, "Argument and answer by depth", "Stages"),
    "example": Figure(stages.example, 1, "Top tokens of one prompt, layer by layer", "Stages"),
    "patterns": Figure(stages.patterns, 1, "Patterns and applying sublayers", "Stages"),
    "crossover": Figure(stages.crossover, 1, "Crossover against model size", "Stages"),
    "extractive": Figure(stages.extractive, 1, "Abstractive and extractive prompts", "Stages"),
    "interventions": Figure(ovectors.interventions, 1, "Answer before and after", "o-vectors"),
    "intervention_example": Figure(
        ovectors.intervention_example, 1, "One prompt, from every start layer", "o-vectors"
    ),
    "start_layers": Figure(ovectors.start_layers, 1, "Source layer and start layer", "o-vectors"),
    "controls": Figure(ovectors.controls, 1, "The o-vector beside its controls", "o-vectors"),
    "controls_by_layer": Figure(
        ovectors.controls_by_layer, 1, "Controls from every start layer", "o-vectors"
    ),
    "parts": Figure(ovectors.parts, 1, "Parts of an o-vector", "o-vectors"),
    "tokenization": Figure(ovectors.tokenization, 1, "Effect by tokenization", "o-vectors"),
    "relations": Figure(ovectors.relations, 1, "Effect by kind of relation", "o-vectors"),
    "ablations": Figure(ablations.ablations, 1, "FFNs removed from the top down", "Ablations"),
    "ablation_twins": Figure(ablations.ablation_twins, 1, "Other ways of removal", "Ablations"),
}
