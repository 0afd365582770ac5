"""Vectors of prompts that show the task: task vectors, function vectors.

Both go into the residual stream at the last token, as their authors put them there.
"""

from vecsweep.files import Tensors
from vecsweep.methods.setting import Material, Vector

# Of task vectors: sets of demonstrations, demonstrations of a set, and prompts that share them.
SETS, SHOTS, QUERIES = 5, 5, 2


def task_vector(material: Material, layer: int) -> list[Vector]:
    """The mean state after a layer that has seen demonstrations (Hendel et al. 2023, section 3).

    arXiv 2310.15916: there of the test prompt's own five demonstrations and two dummy queries; here
    of five such sets, the same for all prompts. None where no prompt could be made.
    """
    if not material.shown:
        return []
    return [Vector(material.shown_states[f"resid_post.{layer:02d}"], "task vector", layer)]


def function_vector(material: Material, layer: int | None) -> list[Vector]:
    """The vector of stage heads (Todd et al. 2024, arXiv 2310.15213); none if it made none."""
    found = [Tensors(path)["function_vector"] for path in material.heads]
    return [Vector(vector, "function vector") for vector in found if len(vector)]
