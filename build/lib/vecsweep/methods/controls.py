"""Controls that must not know the answer: random vectors, zero, the same FFN on random words."""

import random

import torch

from vecsweep.engine.forward import last_token_states
from vecsweep.engine.plans import Plan, named
from vecsweep.methods.setting import Setting

REPEATS = 3  # random vectors and unrelated prompts: one alone may be a lucky one


def random_vectors(setting: Setting) -> list[Plan]:
    """Random directions of the chosen vector's norm."""
    generator = torch.Generator().manual_seed(setting.seed)
    noise = torch.randn(REPEATS, len(setting.vector), generator=generator)
    vectors = noise / noise.norm(dim=-1, keepdim=True) * setting.vector.norm()
    return [setting.plan(vectors, repeated("random", setting.layer, REPEATS))]


def repeated(control: str, layer: int, count: int) -> list[dict]:
    """The names of a control's repetitions."""
    return [named(control, layer, repeat=i) for i in range(count)]


def unrelated(setting: Setting) -> list[Plan]:
    """The source layer's FFN outputs on a few random words.

    The random words that a novel prompt starts with, before the argument, however long that is.
    """
    generator = random.Random(f"{setting.seed} unrelated")
    rows = generator.sample(setting.own, min(REPEATS, len(setting.own)))
    # The words stand there three times, the argument twice between them.
    counts = [(len(row["token_ids"]) - 2 * row["argument_length"]) // 3 for row in rows]
    prompts = [row["token_ids"][: max(1, count)] for row, count in zip(rows, counts)]
    states = [
        last_token_states(setting.engine, [[p]])[f"ffn_out.{setting.layer:02d}"][0] for p in prompts
    ]
    names = repeated("unrelated", setting.layer, len(rows))
    return [setting.plan(torch.stack(states).float(), names)]


def zero(setting: Setting) -> list[Plan]:
    """The FFNs dropped."""
    nothing = torch.zeros(1, len(setting.vector))
    names = [named("zero", setting.layer)]
    return [setting.plan(nothing, names, mode="replace", scale=1.0)]
