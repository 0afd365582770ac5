"""The figures of the paper and of this sweep, each drawn from the database alone.

A new figure is a function in a module here (a read-only connection in, a matplotlib Figure out),
an entry in FIGURES, and its caption `workflow/report/NAME.rst`; it runs without the others. What it
queries is a view of the database (`sql/views/`) or a table.
"""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple


class Figure(NamedTuple):
    """Where a figure is drawn, and how the report lists it; a new `version` draws it again."""

    module: str
    version: int
    title: str
    category: str


SERIES = "Training"  # the category of figures that need models of several revisions
FIGURES = {
    "reciprocal_rank": Figure("curves", 4, "Argument and answer by depth", "Stages"),
    "example": Figure("examples", 4, "Top tokens of one prompt, layer by layer", "Stages"),
    "patterns": Figure("patterns", 4, "Patterns and applying sublayers", "Stages"),
    "crossover": Figure("curves", 4, "Depth of the crossover", "Stages"),
    "attribution": Figure("attribution", 3, "What each layer adds to the answer", "Stages"),
    "tuned": Figure("tuned", 1, "The X through a tuned lens", "Stages"),
    "extractive": Figure("curves", 3, "Abstractive and extractive prompts", "Stages"),
    "interventions": Figure("interventions", 4, "Answer before and after", "o-vectors"),
    "intervention_example": Figure(
        "examples", 4, "One prompt, from every start layer", "o-vectors"
    ),
    "start_layers": Figure("interventions", 4, "Source layer and start layer", "o-vectors"),
    "methods": Figure("methods", 5, "Every method at its best", "o-vectors"),
    "others_answers": Figure("methods", 5, "The own answer among the others'", "o-vectors"),
    "methods_by_layer": Figure("methods", 4, "Methods from every start layer", "o-vectors"),
    "heads": Figure("heads", 1, "Attention heads that carry the task", "o-vectors"),
    "parts": Figure("methods", 3, "Parts of an o-vector", "o-vectors"),
    "checkpoints": Figure("checkpoints", 1, "A relation over training", SERIES),
    "checkpoint_vectors": Figure("checkpoints", 1, "Its vector over training", SERIES),
    "ablations": Figure("ablations", 3, "FFNs removed from the top down", "Ablations"),
    "ablation_twins": Figure("ablations", 3, "Other ways of removal", "Ablations"),
    "swaps": Figure("swaps", 3, "Function or fact: updates exchanged", "Ablations"),
    "patching": Figure("patching", 1, "States and updates from another prompt", "Ablations"),
    "relational": Figure("relational", 1, "The relation as one linear map", "Ablations"),
}


def wanted(series: bool) -> dict[str, Figure]:
    """The figures that there is something to draw for: with or without models of several revisions."""
    return {name: figure for name, figure in FIGURES.items() if series or figure.category != SERIES}


def drawer(name: str) -> Callable:
    """The function that draws a figure: a read-only connection in, a matplotlib Figure out.

    Only its module is imported: drawing packages are slow. Where there is nothing to draw, the
    figure says why.
    """
    draw = getattr(import_module(f"vecsweep.figures.{FIGURES[name].module}"), name)

    def drawn(connection):
        from vecsweep.figures.drawing import Empty, nothing

        try:
            return draw(connection)
        except Empty as reason:
            return nothing(str(reason))

    return drawn
