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


FIGURES = {
    "reciprocal_rank": Figure("curves", 2, "Argument and answer by depth", "Stages"),
    "example": Figure("examples", 1, "Top tokens of one prompt, layer by layer", "Stages"),
    "patterns": Figure("patterns", 2, "Patterns and applying sublayers", "Stages"),
    "crossover": Figure("curves", 2, "Crossover against model size", "Stages"),
    "attribution": Figure("attribution", 1, "What each layer adds to the answer", "Stages"),
    "extractive": Figure("curves", 2, "Abstractive and extractive prompts", "Stages"),
    "interventions": Figure("interventions", 2, "Answer before and after", "o-vectors"),
    "intervention_example": Figure(
        "examples", 1, "One prompt, from every start layer", "o-vectors"
    ),
    "start_layers": Figure("interventions", 2, "Source layer and start layer", "o-vectors"),
    "methods": Figure("methods", 1, "Every method at its best", "o-vectors"),
    "others_answers": Figure("methods", 1, "The own answer among the others'", "o-vectors"),
    "methods_by_layer": Figure("methods", 1, "Methods from every start layer", "o-vectors"),
    "parts": Figure("methods", 2, "Parts of an o-vector", "o-vectors"),
    "tokenization": Figure("relations", 2, "Effect by tokenization", "o-vectors"),
    "relations": Figure("relations", 2, "Effect by kind of relation", "o-vectors"),
    "ablations": Figure("ablations", 1, "FFNs removed from the top down", "Ablations"),
    "ablation_twins": Figure("ablations", 1, "Other ways of removal", "Ablations"),
    "swaps": Figure("swaps", 1, "Function or fact: layers exchanged", "Ablations"),
}


def drawer(name: str) -> Callable:
    """The function that draws a figure. Only its module is imported: drawing packages are slow."""
    return getattr(import_module(f"vecsweep.figures.{FIGURES[name].module}"), name)
