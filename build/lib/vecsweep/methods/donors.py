"""O-vectors: the chosen donor's, the other donors' and their mean, another task's (paper section 2)."""

from vecsweep.engine.plans import Plan, named
from vecsweep.methods.setting import Setting, read_vectors


def chosen(setting: Setting) -> list[Plan]:
    """The vector that was best on dev."""
    donor, layer = setting.donors[setting.index]
    return [setting.plan(setting.vector[None], [named("o-vector", layer, donor=donor)])]


def others(setting: Setting) -> list[Plan]:
    """All other donors at the same setting, and their mean: control `mean`."""
    rest = [i for i in range(len(setting.donors)) if i != setting.index]
    names = [
        named("mean" if donor is None else "donor", layer, donor=donor)
        for donor, layer in (setting.donors[i] for i in rest)
    ]
    return [setting.plan(setting.vectors[rest], names)] if rest else []


def rival(setting: Setting) -> list[Plan]:
    """The mean o-vector of another task."""
    plans = []
    for path in setting.rivals:
        vectors, donors = read_vectors(path)
        if len(vectors):
            plans.append(setting.plan(vectors[-1:], [named("rival", donors[-1][1])]))
    return plans
