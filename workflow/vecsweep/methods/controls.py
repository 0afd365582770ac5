"""Controls that must not know the answer: random vectors, zero, the same FFN on random words."""

import random

import torch

from vecsweep.engine.forward import last_token_states
from vecsweep.methods.setting import Material, Vector

RANDOM, UNRELATED = 20, 5  # tried on test: one alone may be a lucky one


def random_vector(material: Material, layer: int) -> list[Vector]:
    """A random direction of the length of the searched donor's vector."""
    return [_random(material, layer, "dev", None)]


def random_vectors(material: Material, layer: int) -> list[Vector]:
    """Many others of the kind, at the setting that was best for the first."""
    return [_random(material, layer, f"test {i}", i) for i in range(RANDOM)]


def _random(material, layer, purpose, repeat):
    length = material.donors.of(layer)[0][1].norm()
    seed = random.Random(f"{material.seed} random {layer} {purpose}").getrandbits(63)
    noise = torch.randn(
        material.donors.vectors.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    return Vector(noise / noise.norm() * length, "random", layer, repeat=repeat)


def unrelated(material: Material, layer: int) -> list[Vector]:
    """The source layer's FFN output on a few random words."""
    return _unrelated(material, layer, "dev", 1)


def unrelated_several(material: Material, layer: int) -> list[Vector]:
    """The same on other random words, some times."""
    return _unrelated(material, layer, "test", UNRELATED)


def _unrelated(material, layer, purpose, count):
    """A novel prompt up to where it first says the argument: random words, and nothing of the task."""
    generator = random.Random(f"{material.seed} unrelated {purpose}")
    rows = generator.sample(material.own, min(count, len(material.own)))
    prompts = [row["token_ids"][: max(1, said_at(row))] for row in rows]
    states = last_token_states(material.engine, [[p] for p in prompts])
    vectors = states[f"ffn_out.{layer:02d}"].float()
    return [
        Vector(vector, "unrelated", layer, repeat=None if purpose == "dev" else i)
        for i, vector in enumerate(vectors)
    ]


def said_at(row: dict) -> int:
    """Where a novel prompt's tokens first say the argument: twice, each time with the words behind it.

    Before it stand the words, and in a conversation what the chat template starts with.
    """
    ids = row["token_ids"]
    for each in range(len(ids) // 2, row["argument_length"], -1):
        if ids[-2 * each : -each] == ids[-each:]:
            return len(ids) - 2 * each
    # Some letters were joined to others: the words stand there three times, the argument twice.
    return (len(ids) - 2 * row["argument_length"]) // 3


def zero(material: Material, layer: int) -> list[Vector]:
    """The FFNs dropped; nothing was cut from any layer."""
    return [Vector(torch.zeros(material.donors.vectors.shape[1]), "zero")]
