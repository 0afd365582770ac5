"""Model families as data: all that is particular to one stands in its row here.

Importing this needs no torch: the planner and the launcher read the rows too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vecsweep import Problem

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder-only transformer are: dotted module names.

    Of the model: `decoder` (without the LM head), `blocks`, `final_norm`, `embedding`, `head`.

    Of a block, relative to it:
    - `attention`, `ffn`: the modules whose output is what the block adds to the residual stream.
    - `ffn_norm`: the module that reads the mid-block state; None where attention and FFN read the
      same input (parallel blocks).
    - `bypass`: the inner module that need not run when the FFN's output is given.
    - `down`: the matrix from the FFN's neurons to the stream. Its output is the FFN's update, but
      for a norm after it where `ffn_scaled`. None: the update has no parts by neuron.
    - `attention_out`: the matrix from the attention heads' outputs, side by side, to the stream. Its
      output is the attention's update, but for a norm after it where `ffn_scaled`. None: the update
      has no parts by head.
    - `summed`: the linear layers whose output DeepSpeed's AutoTP sums over the processes: it
      splits their weight and leaves their bias whole, and splits both in all others. None named:
      AutoTP cannot split this family.

    Not modules:
    - `parallel_flags`: the config attributes of which any says that blocks are parallel.
    - `update_scale`: the config attribute by which blocks multiply what attention and FFN give
      before they add it.
    - `per_head`: a block's arguments that have a row for each prompt and head, not each prompt.
    - `shared`: a block's arguments that all prompts share, whatever their shape.
    - `norm_offset`: what the final norm adds to its weight.
    - `norm_centres`: whether it takes the mean off, though it is no torch.nn.LayerNorm.
    - `times`, `divided_by`: the config attributes by which logits are multiplied or divided.
    - `cap`: the config attribute c of a soft cap, which makes c * tanh(logit / c) of a logit.
    - `head_in_files`: what checkpoints call `head`, if not so.
    - `in_files`: (end of a parameter's name, ends of the keys that a checkpoint has instead): with
      {} for an expert's number they stand in it one after another, expert by expert.
    - `no_parameters`: how keys end that old checkpoints have and no model needs: attention masks
      and rotary tables.
    """

    decoder: str
    blocks: str
    final_norm: str
    embedding: str
    attention: str
    ffn: str
    ffn_norm: str | None
    bypass: str | None = None
    down: str | None = None
    attention_out: str | None = None
    ffn_scaled: bool = False
    summed: tuple[str, ...] = ()
    head: str = "lm_head"
    parallel_flags: tuple[str, ...] = ()
    update_scale: str | None = None
    per_head: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    norm_offset: float = 0.0
    norm_centres: bool = False
    times: str | None = None
    divided_by: str | None = None
    cap: str | None = None
    head_in_files: str | None = None
    in_files: tuple[tuple[str, tuple[str, ...]], ...] = ()
    no_parameters: tuple[str, ...] = ()


_LLAMA = Family(
    decoder="model",
    blocks="model.layers",
    final_norm="model.norm",
    embedding="model.embed_tokens",
    attention="self_attn",
    ffn="mlp",
    ffn_norm="post_attention_layernorm",
    down="mlp.down_proj",
    attention_out="self_attn.o_proj",
    summed=("self_attn.o_proj", "mlp.down_proj"),
    no_parameters=(".rotary_emb.inv_freq",),
)
_WHOLE = replace(_LLAMA, summed=())  # fused or normed where AutoTP would cut
_POST_NORM = replace(
    _WHOLE,
    attention="post_attention_layernorm",
    ffn="post_feedforward_layernorm",
    ffn_norm="mlp",  # no norm reads the mid-block state: the FFN itself does
    bypass="mlp",
    ffn_scaled=True,
)
_GEMMA = replace(
    _LLAMA,
    attention="post_attention_layernorm",
    ffn="post_feedforward_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    bypass="mlp",
    ffn_scaled=True,
    norm_offset=1.0,  # its RMSNorm scales by 1 + weight
    cap="final_logit_softcapping",
)
# The experts have no one matrix from neurons to the stream.
_EXPERTS = replace(
    _WHOLE,
    down=None,
    in_files=(
        (
            "mlp.experts.gate_up_proj",
            ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
        ),
        ("mlp.experts.down_proj", ("mlp.experts.{}.down_proj.weight",)),
    ),
)

FAMILIES = {
    "gpt2": Family(
        decoder="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        attention="attn",
        ffn="mlp",
        ffn_norm="ln_2",
        down="mlp.c_proj",
        attention_out="attn.c_proj",
        # AutoTP knows no Conv1D. GPT-Neo fits this row; its attention is a module further down.
        no_parameters=(".attn.bias", ".attention.bias", ".masked_bias"),
    ),
    "gptj": Family(
        decoder="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        attention="attn",
        ffn="mlp",
        ffn_norm=None,
        down="mlp.fc_out",
        attention_out="attn.out_proj",
        summed=("attn.out_proj", "mlp.fc_out"),
        no_parameters=(".attn.bias", ".masked_bias"),
    ),
    "gpt_neox": Family(
        decoder="gpt_neox",
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        embedding="gpt_neox.embed_in",
        attention="attention",
        ffn="mlp",
        ffn_norm="post_attention_layernorm",
        down="mlp.dense_4h_to_h",
        attention_out="attention.dense",
        summed=("attention.dense", "mlp.dense_4h_to_h"),
        parallel_flags=("use_parallel_residual",),
        head_in_files="embed_out",
        no_parameters=(".attention.bias", ".masked_bias", ".rotary_emb.inv_freq"),
    ),
    "bloom": Family(
        decoder="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.word_embeddings",
        # The outputs of `self_attention` and `mlp` already include the residual.
        attention="self_attention.dense",
        ffn="mlp.dense_4h_to_h",
        ffn_norm="post_attention_layernorm",
        bypass="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        attention_out="self_attention.dense",
        summed=("self_attention.dense", "mlp.dense_4h_to_h"),
        per_head=("alibi",),
    ),
    "opt": Family(
        decoder="model",
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        embedding="model.decoder.embed_tokens",
        attention="self_attn",
        ffn="fc2",
        ffn_norm="final_layer_norm",
        bypass="fc1",
        down="fc2",
        attention_out="self_attn.out_proj",
        summed=("self_attn.out_proj", "fc2"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _WHOLE,
    "smollm3": _WHOLE,
    "nemotron": replace(_WHOLE, norm_offset=1.0),
    "stablelm": replace(_WHOLE, parallel_flags=("use_parallel_residual",)),
    "granite": replace(_WHOLE, update_scale="residual_multiplier", divided_by="logits_scaling"),
    "cohere": replace(_WHOLE, ffn_norm=None, norm_centres=True, times="logit_scale"),
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "glm4": replace(
        _POST_NORM,
        attention="post_self_attn_layernorm",
        ffn="post_mlp_layernorm",
        ffn_norm="post_attention_layernorm",
    ),
    "falcon": Family(
        decoder="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.word_embeddings",
        attention="self_attention",
        ffn="mlp",
        ffn_norm="post_attention_layernorm",
        down="mlp.dense_4h_to_h",
        attention_out="self_attention.dense",
        parallel_flags=("parallel_attn", "new_decoder_architecture"),
    ),
    "mpt": Family(
        decoder="transformer",
        blocks="transformer.blocks",
        final_norm="transformer.norm_f",
        embedding="transformer.wte",
        attention="attn",
        ffn="ffn.down_proj",  # the output of `ffn` already includes the residual
        ffn_norm="norm_2",
        bypass="ffn.up_proj",
        down="ffn.down_proj",
        attention_out="attn.out_proj",
        shared=("position_bias",),
    ),
    "mixtral": replace(
        _EXPERTS,
        in_files=(
            ("mlp.gate.weight", ("block_sparse_moe.gate.weight",)),
            (
                "mlp.experts.gate_up_proj",
                (
                    "block_sparse_moe.experts.{}.w1.weight",
                    "block_sparse_moe.experts.{}.w3.weight",
                ),
            ),
            ("mlp.experts.down_proj", ("block_sparse_moe.experts.{}.w2.weight",)),
        ),
    ),
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "gpt_oss": replace(_EXPERTS, in_files=()),
    "llama4_text": replace(_EXPERTS, ffn="feed_forward", in_files=()),
}

# Sizes that a config.json may call by another name; several families do, in several ways.
_SIZES = {
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
}


def size_in(content: dict, name: str) -> int | None:
    """`num_attention_heads`, `hidden_size` or `layers` of a config.json's content; None if it has none."""
    return next((content[key] for key in _SIZES[name] if key in content), None)


def module_at(root: torch.nn.Module, dotted: str) -> Any:
    """The submodule of `root` at a dotted name; AttributeError if there is none."""
    for name in dotted.split("."):
        root = getattr(root, name)
    return root


def output_weight(module: Any) -> torch.Tensor:
    """The weight of a linear layer as [in, out], which is how a Conv1D keeps it."""
    from transformers.pytorch_utils import Conv1D

    from vecsweep.engine.quantized import plain

    weight = plain(module.weight).detach()
    return weight if isinstance(module, Conv1D) else weight.T


def is_parallel(family: Family, config: PretrainedConfig) -> bool:
    """Whether attention and FFN read the same input in this model's blocks."""
    if family.ffn_norm is None:
        return True
    return any(getattr(config, flag) for flag in family.parallel_flags)


def update_scale(family: Family, config: PretrainedConfig) -> float:
    """What this model's blocks multiply the outputs of attention and FFN by before adding them."""
    return float(getattr(config, family.update_scale)) if family.update_scale else 1.0


def logit_scale(family: Family, config: PretrainedConfig) -> float:
    """What this model multiplies the LM head's output by."""
    times = getattr(config, family.times) if family.times else 1.0
    return times / (getattr(config, family.divided_by) if family.divided_by else 1.0)


def logit_cap(family: Family, config: PretrainedConfig) -> float | None:
    """The c of this model's soft cap c * tanh(logit / c); None if it has none."""
    return getattr(config, family.cap) if family.cap else None


def tensor_parallel(model_type: str) -> bool:
    """Whether AutoTP can split a model type; for unlisted ones nothing says that it can."""
    return model_type in FAMILIES and bool(FAMILIES[model_type].summed)


def family_of(model: PreTrainedModel) -> Family:
    """The row for a `transformers` causal LM, by model type, else the first whose names all fit.

    An unlisted family that fits by name is only trusted after `proof.prove`. It borrows the row,
    without `summed` and `in_files`, and without `down` if it has all the rest (a mixture of experts).
    """
    model_type = model.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    lacks = {}
    for name, family in FAMILIES.items():
        lacks[name] = _lacks(family, model)
        if not lacks[name]:
            return _lent(family, model)
    for family in FAMILIES.values():
        family = replace(family, down=None, ffn_scaled=False)
        if not _lacks(family, model):
            return _lent(family, model)
    nearest = min(lacks, key=lambda name: len(lacks[name]))
    raise Problem(
        f"unknown model family '{model_type}': it fits no row, not even {nearest}'s for want of "
        f"{', '.join(lacks[nearest])}; add a row to workflow/vecsweep/engine/families.py"
    )


def _lent(family: Family, model: PreTrainedModel) -> Family:
    """A row for a model that is not of it."""
    out = family.attention_out
    try:
        for block in module_at(model, family.blocks) if out else ():
            module_at(block, str(out))
    except AttributeError:
        out = None
    return replace(family, summed=(), in_files=(), attention_out=out)


def _lacks(family: Family, model: PreTrainedModel) -> list[str]:
    """What a row names and a model has not, in all of its blocks."""
    lacking = []

    def needs(root: torch.nn.Module, name: str, attribute: str = "forward") -> Any:
        try:
            module = module_at(root, name)
        except AttributeError:
            module = None
        if not hasattr(module, attribute):
            lacking.append(name)
        return module

    needs(model, family.decoder)
    needs(model, family.final_norm, "weight")
    needs(model, family.embedding, "embedding_dim")
    needs(model, family.head, "weight")
    for name in (*family.parallel_flags, family.update_scale, family.times, family.divided_by):
        if name and not hasattr(model.config, name):
            lacking.append(name)
    for block in needs(model, family.blocks) or ():
        for part in (family.attention, family.ffn, family.ffn_norm, family.bypass):
            if part:
                needs(block, part)
        if family.down:
            weight = getattr(needs(block, family.down, "weight"), "weight", None)
            if weight is not None and weight.dim() != 2:
                lacking.append(family.down)
    return list(dict.fromkeys(lacking))
