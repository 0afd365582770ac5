"""The word2vec offset of the relations literature: a difference of mean states."""

import torch

from vecsweep.engine.forward import last_token_states
from vecsweep.engine.plans import Plan, named
from vecsweep.methods.setting import Setting
from vecsweep.tasks.rows import kept_rows


def of_means(setting: Setting) -> list[Plan]:
    """The difference in the o-vector's place at all edited layers, and added once, at the first."""
    vector = difference(setting)[None]
    once = {"mode": "add", "end": setting.start, "scale": 1.0}
    return [
        setting.plan(vector, [named("difference", setting.layer)]),
        setting.plan(vector, [named("difference_once", setting.layer)], **once),
    ]


def difference(setting: Setting) -> torch.Tensor:
    """Mean residual state that is about to say the answer minus that about to say the argument.

    Over the donors' abstractive and novel prompts, at the last token after the source layer's
    block, [d_model].
    """
    ids = {donor for donor, _ in setting.donors}
    means = []
    for prompt_set in ("abstractive", "novel"):
        rows = [r for r in kept_rows(setting.prompts, (prompt_set,)) if r["prompt_id"] in ids]
        states = last_token_states(setting.engine, [[r["token_ids"]] for r in rows])
        means.append(states[f"resid_post.{setting.layer:02d}"].float().mean(0))
    return means[0] - means[1]
