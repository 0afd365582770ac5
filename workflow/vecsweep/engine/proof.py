"""Every model proves its adapter when it is loaded: no figure from a wrong hook."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vecsweep import Problem
from vecsweep.engine.edits import Edit, clean_runs, resume_all
from vecsweep.engine.forward import added, captured, first, hooks
from vecsweep.engine.load import Engine
from vecsweep.engine.readout import Readout

# Relative to the largest entry; bfloat16 keeps 8 bits of mantissa, float16 11.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# Two runs of all layers part by more than a layer's parts do.
RUNS = 4
TOKENS = 32  # of a prompt, at most: it is run some five times


@dataclass(frozen=True)
class Proof:
    """What was measured: differences relative to the largest entry, within `TOLERANCE`.

    `stream`: of the parts that must add up, the largest over all layers. `readout`: of early
    decoding at the last layer and the model's own logits; None where nothing is decoded. `runs`: of
    the final state of the ways in which prompts are run here and of a plain forward.
    """

    stream: float
    readout: float | None
    runs: float


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    a, b = a.float(), b.float()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


@torch.inference_mode()
def prove(engine: Engine, readout: Readout | None, ids: list[int]) -> Proof:
    """Problem unless the parts add up at every layer and the readout gives the model's logits.

    Sequential blocks: resid_mid + ffn_out = resid_post; parallel ones: resid_pre + attention's
    output + ffn_out = resid_post (paper section 2). The output of `down` is ffn_out, but where it
    is scaled. Nor unless a shared beginning and edits give what a plain forward gives: see `_runs`.
    `ids` is any prompt, of which the first TOKENS serve. Processes that do not decode give no readout.
    """
    ids = ids[:TOKENS]
    outputs: dict[str, torch.Tensor] = {}
    handles = []
    parts = ["attention"]
    if engine.family.down and not engine.family.ffn_scaled:
        parts.append("down")
    for layer in range(len(engine.blocks)):
        for part in parts:

            def keep(module, args, output, name=f"{part}.{layer:02d}"):
                output = added(engine, output)
                outputs[name] = output.reshape(1, -1, output.shape[-1])[:, -1].clone()

            handles.append(engine.part(layer, part).register_forward_hook(keep))
    with hooks(handles), captured(engine) as states:
        logits = _plain(engine, engine.model, [ids]).logits[:, -1].cpu()
    outputs |= states
    tolerance = TOLERANCE[engine.model.dtype]
    family, worst, last = engine.model.config.model_type, 0.0, len(engine.blocks) - 1
    for layer in range(len(engine.blocks)):
        for name, found, expected in _identities(engine, outputs, f"{layer:02d}"):
            if not (found.isfinite().all() and expected.isfinite().all()):
                raise Problem(_not_finite(engine, f"layer {layer}"))
            off = _difference(found, expected)
            if not off <= tolerance:
                raise Problem(
                    f"family '{family}', layer {layer}: {name} fails by {off:.1e} (relative); "
                    "correct its row in workflow/vecsweep/engine/families.py"
                )
            worst = max(worst, off)
    final, middle = (
        states[name] for name in (f"resid_post.{last:02d}", f"ffn_out.{(last + 1) // 2:02d}")
    )
    runs = 0.0
    try:
        # Not the FFN's own update, but as long.
        for name, found, expected in _runs(engine, ids, final, middle.roll(1, -1)):
            off = _difference(found, expected)
            if not off <= RUNS * tolerance:
                raise Problem(
                    f"family '{family}': {name} gives another state than a plain forward, by "
                    f"{off:.1e} (relative); correct its row in workflow/vecsweep/engine/families.py"
                )
            runs = max(runs, off)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or engine.sharding != "single":
            raise
        reason = " ".join(str(error).split())[:200]
        raise Problem(
            f"family '{family}': its blocks cannot be run by themselves ({reason}); correct its row "
            "in workflow/vecsweep/engine/families.py"
        ) from error
    if readout is None:
        return Proof(worst, None, runs)
    decoded = readout.capped(readout.logits(readout.normed(final.cpu())))
    if not (decoded.isfinite().all() and logits.isfinite().all()):
        raise Problem(_not_finite(engine, "the logits"))
    off = _difference(decoded, logits)
    if not off <= tolerance:
        raise Problem(
            f"family '{family}': early decoding of the last layer differs from the model's logits "
            f"by {off:.1e} (relative); the final norm or the head is not where families.py says"
        )
    return Proof(worst, off, runs)


def _plain(engine: Engine, module: Any, prompts: list[list[int]]) -> Any:
    """What the model, or its decoder, alone gives for prompts of one length."""
    ids = torch.tensor(prompts, device=engine.device)
    engine.shape = (len(prompts), len(prompts[0]))
    return module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def _runs(
    engine: Engine, ids: list[int], final: torch.Tensor, vector: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (name, final state, what a plain forward says that it is) of what runs of prompts share.

    A prompt's beginning is run once for it and another one, then both in one batch. In the middle
    layer a vector [1, d_model] replaces the FFN, and is added to it at the last token, both by runs
    that resume there and by a hook. `final` [1, d_model] is the state of the plain forward.
    """
    half, layer = len(ids) // 2, len(engine.blocks) // 2
    clean = next(clean_runs(engine, [ids, ids[:half] + ids[half:][::-1]], 2))
    yield "a shared beginning", clean.last[:1], final
    edits = [Edit({layer: vector}), Edit({layer: vector}, "add", "last")]
    found = [after[0, :1] for after in resume_all(engine, clean, edits)]
    last: list[torch.Tensor] = []

    def change(module, args, output):
        new = first(output).clone()
        replaced, raised = new.view(2, len(ids), -1)
        replaced.copy_(vector / engine.update_scale)
        raised[-1] += vector[0] / engine.update_scale
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def keep(module, args, output):
        last.append(first(output)[:, -1])

    handles = [
        engine.part(layer, "ffn").register_forward_hook(change),
        engine.blocks[-1].register_forward_hook(keep),
    ]
    with hooks(handles):
        _plain(engine, engine.decoder, [ids, ids])
    for name, state, expected in zip(("a replaced FFN", "an FFN that is added to"), found, last[0]):
        yield f"a run resumed at {name}", state, expected[None]


def _identities(
    engine: Engine, outputs: dict[str, torch.Tensor], layer: str
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (name, tensor, tensor that must be the same) of one layer, each [1, d_model]."""
    before = outputs[f"resid_pre.{layer}"] + outputs[f"attention.{layer}"]
    if not engine.parallel:
        middle = outputs[f"resid_mid.{layer}"]
        yield "resid_pre + attention = resid_mid", before, middle
        before = middle
    update = outputs[f"ffn_out.{layer}"]
    name = "resid before the FFN + ffn_out = resid_post"
    yield name, before + update, outputs[f"resid_post.{layer}"]
    if f"down.{layer}" in outputs:
        yield "down's output = ffn_out", outputs[f"down.{layer}"], update


def _not_finite(engine: Engine, where: str) -> str:
    dtype = str(engine.model.dtype).removeprefix("torch.")
    return (
        f"model '{engine.name}', {where}: numbers that are infinite or none in {dtype}; "
        "fetch the weights again, or give the model a wider dtype"
    )
