"""Vector methods: what is put into the FFNs' place, each a row of METHODS, all on equal footing.

A method makes one vector for each source layer, from train prompts alone. All search the same grid
(source layer, start layer, range or once, replace or add, scale) on the same dev prompts, and each
is reported at its own best setting on the same test prompts. A new method is a function of a
`Material` and a source layer in a module here, and a row below; figures label it in
`figures/methods.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from vecsweep.methods import controls, differences, donors, parts, shown
from vecsweep.methods.setting import Donors, Material, Vector

__all__ = ["METHODS", "Donors", "Material", "Method", "Vector", "candidates", "reported"]

Maker = Callable[[Material, int], list[Vector]]


class Method(NamedTuple):
    """How a method's vectors are made: `search` for dev, one a source layer, `report` for test.

    `by_source`: the vector depends on the source layer. `modes`: those that make sense for it.
    `key`: of one that is searched and reported by stage contenders, the config key that lists the
    tasks it is for.
    """

    search: Maker
    report: Maker | None = None
    by_source: bool = True
    modes: tuple[str, ...] = ("replace", "add")
    key: str | None = None


METHODS = {
    "o-vector": Method(donors.single),
    "mean": Method(donors.mean),
    "difference": Method(differences.of_means),
    "rival": Method(donors.rival),
    "unrelated": Method(controls.unrelated, controls.unrelated_several),
    "random": Method(controls.random_vector, controls.random_vectors),
    # Adding zero would change nothing, at any scale.
    "zero": Method(controls.zero, by_source=False, modes=("replace",)),
    "task vector": Method(shown.task_vector, modes=("replace_state",), key="task_vectors"),
    "function vector": Method(
        shown.function_vector, by_source=False, modes=("add_state",), key="function_vectors"
    ),
}


def candidates(material: Material) -> list[Vector]:
    """What is searched: a vector for each method and source layer that has one."""
    layers = list(material.donors.flips)
    return [
        vector
        for method in METHODS.values()
        if not method.key
        for layer in (layers if method.by_source else layers[:1])
        for vector in method.search(material, layer)
    ]


def reported(material: Material, name: str, layer: int | None) -> list[Vector]:
    """What a method is reported with, at the source layer that was best on dev.

    With the o-vector go the other donors of its layer (method `donor`) and its parts.
    """
    method = METHODS[name]
    layers = list(material.donors.flips)
    if name == "rival":  # its source layer is another task's
        sources = [v for own in layers for v in method.search(material, own)]
        return [next(v for v in sources if v.source_layer == layer)]
    found = (method.report or method.search)(material, layers[0] if layer is None else layer)
    if name == "o-vector" and layer is not None:
        donor, _ = material.donors.of(layer)[0]
        found += donors.others(material, layer)
        found += parts.largest(material, layer, donor)
    return found
