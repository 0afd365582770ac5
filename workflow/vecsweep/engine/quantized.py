"""Weights rounded to 8 or 4 bits by torchao, and what that costs in answers."""

from pathlib import Path
from typing import Any

import torch

from vecsweep import Problem
from vecsweep.engine.families import family_of, module_at

# Asked with whole and with rounded weights.
COUNTRIES = (
    "Poland", "China", "Japan", "Cuba", "Peru", "Kenya", "Norway", "Ghana", "Egypt", "Chile",
    "Italy", "Spain", "Greece", "Turkey", "Iran", "Iraq", "Thailand", "Vietnam", "Canada", "Brazil",
    "Austria", "Hungary", "Sweden", "Finland", "Portugal", "Ireland", "Morocco", "Nepal", "Qatar",
    "Russia", "Ukraine", "Colombia",
)  # fmt: skip
QUESTIONS = [f"The capital of France is Paris. The capital of {name} is" for name in COUNTRIES]
GROUP = 32  # int4: weights of a row that share a scale


def quantize(model: Any, kind: str, name: str) -> float:
    """Round the linear weights of a model's blocks in place; the share of their parameters rounded.

    `kind` int8: a scale for each output; int4: one for each 32 inputs, kept in bytes, so that it
    says what 4 bits do to the answers and needs no more memory than int8. Embedding, norms, biases
    and head stay as they are, and products are taken in the model's dtype. Problem where torchao is
    missing, or does not know the blocks' layers (GPT-2's Conv1D, fused experts).
    """
    try:
        import torchao.quantization as torchao
    except ImportError as error:
        raise Problem(
            f"model '{name}': quantized: {kind} needs torchao; pip install torchao==0.18.0"
        ) from error
    if kind == "int8":
        settings = torchao.Int8WeightOnlyConfig()
    elif kind == "int4":
        rows = torchao.PerGroup(GROUP)
        settings = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=rows)  # type: ignore[attr-defined]
    blocks = module_at(model, family_of(model).blocks)
    matrices = [m for m in blocks.modules() if isinstance(m, torch.nn.Linear)]
    rounded = sum(m.weight.numel() for m in matrices)
    if not rounded or kind == "int4" and any(m.in_features % GROUP for m in matrices):
        raise Problem(
            f"model '{name}': its blocks have no linear layers that {kind} is made for; remove "
            "quantized, or take another model"
        )
    every = sum(p.numel() for p in blocks.parameters())
    torchao.quantize_(blocks, settings)
    return rounded / every


def plain(weight: torch.Tensor) -> torch.Tensor:
    """A weight as numbers: torchao's own tensors unpacked, others as they are."""
    packed = type(weight) not in (torch.Tensor, torch.nn.Parameter)
    return weight.dequantize() if packed else weight


@torch.inference_mode()
def cost(folder: Path, dtype: torch.dtype, kind: str, name: str, prompts: list[list[int]]) -> dict:
    """What rounding does to a model's answers to prompts (token ids), at the last token.

    `same_top`: share of prompts whose top token stays; `divergence`: mean Kullback-Leibler
    divergence of the rounded model's distribution from the whole one's, nats.
    """
    from vecsweep.engine.load import load_single

    model = load_single(folder, dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    whole = _answers(model, prompts)
    share = quantize(model, kind, name)
    rounded = _answers(model, prompts)
    same = (whole.argmax(-1) == rounded.argmax(-1)).float().mean().item()
    divergence = (whole.exp() * (whole - rounded)).sum(-1).mean().item()
    return {
        "quantized": kind,
        "quantized_share": share,
        "same_top": same,
        "divergence": divergence,
    }


def _answers(model, prompts) -> torch.Tensor:
    """Log-probabilities [prompts, vocabulary], float32 on the CPU."""
    found = []
    for ids in prompts:
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        found.append(logits.float().log_softmax(-1).cpu())
    return torch.stack(found)
