"""Every model proves its adapter when it is loaded: no figure from a wrong hook."""

import torch

from vecsweep import Problem
from vecsweep.engine.forward import captured, first, hooks, run_decoder
from vecsweep.engine.load import Engine
from vecsweep.engine.readout import Readout

# Relative to the largest entry; bfloat16 keeps 8 bits of mantissa, float16 11.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float(), b.float()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


@torch.inference_mode()
def prove(engine: Engine, readout: Readout | None, ids: list[int]) -> None:
    """Problem unless the parts add up at every layer and the readout gives the model's logits.

    Sequential blocks: resid_mid + ffn_out = resid_post; parallel ones: resid_pre + attention's
    output + ffn_out = resid_post (paper section 2). `ids` is any prompt. Ranks that do not decode
    give no readout.
    """
    attention: dict[int, torch.Tensor] = {}
    handles = []
    for layer in range(len(engine.blocks)):

        def hook(module, args, output, layer=layer):
            attention[layer] = first(output)[:, -1].clone()

        handles.append(engine.part(layer, "attention").register_forward_hook(hook))
    prompt = torch.tensor([ids], device=engine.device)
    with hooks(handles), captured(engine) as states:
        run_decoder(engine, prompt)
    mask = torch.ones_like(prompt)
    logits = (
        engine.model(input_ids=prompt, attention_mask=mask, use_cache=False).logits[:, -1].cpu()
    )
    tolerance = TOLERANCE[engine.model.dtype]
    family = engine.model.config.model_type
    for layer in range(len(engine.blocks)):
        number = f"{layer:02d}"
        before = states[f"resid_pre.{number}"] + attention[layer]
        if not engine.parallel:
            middle = states[f"resid_mid.{number}"]
            if not (off := _difference(before, middle)) <= tolerance:  # nan fails too
                raise Problem(_wrong(family, layer, "resid_pre + attention = resid_mid", off))
            before = middle
        off = _difference(before + states[f"ffn_out.{number}"], states[f"resid_post.{number}"])
        if not off <= tolerance:
            raise Problem(_wrong(family, layer, "resid before the FFN + ffn_out = resid_post", off))
    if readout is None:
        return
    last = states[f"resid_post.{len(engine.blocks) - 1:02d}"].cpu()
    off = _difference(readout.logits(readout.normed(last)), logits)
    if not off <= tolerance:
        raise Problem(
            f"family '{family}': early decoding of the last layer differs from the model's logits "
            f"by {off:.1e} (relative); the final norm or the head is not where families.py says"
        )


def _wrong(family, layer, identity, off):
    return (
        f"family '{family}', layer {layer}: {identity} fails by {off:.1e} (relative); "
        "correct its row in workflow/vecsweep/engine/families.py"
    )
