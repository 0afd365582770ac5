"""Every model proves its adapter when it is loaded: no figure from a wrong hook."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vecsweep import Problem
from vecsweep.engine.forward import captured, first, hooks, run_decoder
from vecsweep.engine.load import Engine
from vecsweep.engine.readout import Readout

# Relative to the largest entry; bfloat16 keeps 8 bits of mantissa, float16 11.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Proof:
    """What was measured: differences relative to the largest entry, within `TOLERANCE`.

    `stream`: of the parts that must add up, the largest over all layers. `readout`: of early
    decoding at the last layer and the model's own logits; None where nothing is decoded.
    """

    stream: float
    readout: float | None


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
    is scaled. `ids` is any prompt. Processes that do not decode give no readout.
    """
    outputs: dict[str, torch.Tensor] = {}
    handles = []
    parts = ["attention"]
    if engine.family.down and not engine.family.ffn_scaled:
        parts.append("down")
    for layer in range(len(engine.blocks)):
        for part in parts:

            def keep(module, args, output, name=f"{part}.{layer:02d}"):
                output = first(output)
                outputs[name] = output.reshape(1, -1, output.shape[-1])[:, -1].clone()

            handles.append(engine.part(layer, part).register_forward_hook(keep))
    prompt = torch.tensor([ids], device=engine.device)
    with hooks(handles), captured(engine) as states:
        run_decoder(engine, prompt)
    mask = torch.ones_like(prompt)
    logits = (
        engine.model(input_ids=prompt, attention_mask=mask, use_cache=False).logits[:, -1].cpu()
    )
    outputs |= states
    tolerance = TOLERANCE[engine.model.dtype]
    family, worst = engine.model.config.model_type, 0.0
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
    if readout is None:
        return Proof(worst, None)
    decoded = readout.logits(
        readout.normed(states[f"resid_post.{len(engine.blocks) - 1:02d}"].cpu())
    )
    if not (decoded.isfinite().all() and logits.isfinite().all()):
        raise Problem(_not_finite(engine, "the logits"))
    off = _difference(decoded, logits)
    if not off <= tolerance:
        raise Problem(
            f"family '{family}': early decoding of the last layer differs from the model's logits "
            f"by {off:.1e} (relative); the final norm or the head is not where families.py says"
        )
    return Proof(worst, off)


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
