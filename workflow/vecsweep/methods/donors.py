"""O-vectors: one donor's, the mean of a layer's, another task's (paper section 2)."""

from vecsweep.methods.setting import Donors, Material, Vector


def single(material: Material, layer: int) -> list[Vector]:
    """The update of one donor, drawn by the seed."""
    donor, vector = material.donors.of(layer)[0]
    return [Vector(vector, "o-vector", layer, donor)]


def others(material: Material, layer: int) -> list[Vector]:
    """The layer's other donors: how much hangs on which one was drawn."""
    return [
        Vector(vector, "donor", layer, donor) for donor, vector in material.donors.of(layer)[1:]
    ]


def mean(material: Material, layer: int) -> list[Vector]:
    """The mean over all donors of a source layer."""
    return [Vector(material.donors.mean(layer), "mean", layer)]


def rival(material: Material, layer: int) -> list[Vector]:
    """The mean of another task's source layer of the same place: its commonest for our commonest.

    None where that task has fewer source layers.
    """
    place = list(material.donors.flips).index(layer)
    found = []
    for path in material.rivals:
        theirs = Donors(path)
        layers = list(theirs.flips)
        if place < len(layers):
            found.append(Vector(theirs.mean(layers[place]), "rival", layers[place]))
    return found
