"""Vector methods: what is put into the FFNs' place at the chosen setting, each a row of METHODS.

A new method is a function of a `Setting` that gives plans, in a module here, and a row below. Stage `selection` runs all of them on the same test prompts. Figures label them in
`figures/controls.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from vecsweep.engine.plans import Plan
from vecsweep.methods import controls, differences, donors, parts
from vecsweep.methods.setting import Setting, read_vectors

__all__ = ["METHODS", "Method", "Setting", "plans_of", "read_vectors"]


class Method(NamedTuple):
    """How the plans of a method are made; `at_every_layer`: tried from each start layer too."""

    make: Callable[[Setting], list[Plan]]
    at_every_layer: bool = False


METHODS = {
    "o-vector": Method(donors.chosen, at_every_layer=True),
    "donor": Method(donors.others),  # and control `mean`: the mean of the donors
    "random": Method(controls.random_vectors, at_every_layer=True),
    "rival": Method(donors.rival, at_every_layer=True),
    "unrelated": Method(controls.unrelated, at_every_layer=True),
    "zero": Method(controls.zero, at_every_layer=True),
    # And control `difference_once`: added once, at the start layer alone.
    "difference": Method(differences.of_means, at_every_layer=True),
    "parts": Method(parts.largest),  # controls `neurons_K` and `directions_K`
}


def plans_of(setting: Setting) -> list[Plan]:
    """The plans of all methods at the chosen setting, the o-vector's first."""
    return [plan for method in METHODS.values() for plan in method.make(setting)]
