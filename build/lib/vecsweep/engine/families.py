"""Model families as data: where the parts of a decoder-only transformer are."""

from dataclasses import dataclass
from functools import reduce

from vecsweep import Problem


@dataclass(frozen=True)
class Family:
    """Dotted module names; those from `attention` on are relative to a block.

    `attention` and `ffn` are the modules whose output is what the block adds to the
    residual stream. `ffn_norm` is the norm that reads the mid-block state, and None (or a
    false `sequential_if`) where attention and FFN read the same input (parallel blocks).
    `bypass` is the inner module that need not run when the FFN's output is given, `down` the
    matrix from the FFN's neurons to the stream, `ffn_scaled` says that a norm follows it.
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
    ffn_scaled: bool = False
    parallel_flag: str | None = None  # the config attribute that says whether blocks are parallel
    norm_offset: float = 0.0  # Gemma's RMSNorm scales by 1 + weight


_LLAMA = Family(
    decoder="model",
    blocks="model.layers",
    final_norm="model.norm",
    embedding="model.embed_tokens",
    attention="self_attn",
    ffn="mlp",
    ffn_norm="post_attention_layernorm",
    down="mlp.down_proj",
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
    ),
    "gpt_neox": Family(
        decoder="gpt_neox",
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        embedding="gpt_neox.embed_in",
        attention="attention",
        ffn="mlp",
        ffn_norm="post_attention_layernorm",
        parallel_flag="use_parallel_residual",
        down="mlp.dense_4h_to_h",
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
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": Family(
        decoder="model",
        blocks="model.layers",
        final_norm="model.norm",
        embedding="model.embed_tokens",
        attention="post_attention_layernorm",
        ffn="post_feedforward_layernorm",
        ffn_norm="pre_feedforward_layernorm",
        bypass="mlp",
        norm_offset=1.0,
        down="mlp.down_proj",
        ffn_scaled=True,
    ),
}


def module_at(root, dotted: str):
    """The submodule of `root` at a dotted name; AttributeError if there is none."""
    return reduce(getattr, dotted.split("."), root)


def is_parallel(family: Family, config) -> bool:
    """Whether attention and FFN read the same input in this model's blocks."""
    if family.ffn_norm is None:
        return True
    return bool(family.parallel_flag and getattr(config, family.parallel_flag))


def family_of(model) -> Family:
    """The row for a `transformers` causal LM, by model type, else the first whose names all fit.

    An unlisted family that fits by name is only trusted after `proof.prove`.
    """
    model_type = model.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    for family in dict.fromkeys(FAMILIES.values()):
        if _fits(family, model):
            return family
    raise Problem(
        f"unknown model family '{model_type}': its modules match none of {', '.join(FAMILIES)}; "
        "add a row to workflow/vecsweep/engine/families.py"
    )


def _fits(family: Family, model) -> bool:
    inner = [family.attention, family.ffn, family.ffn_norm, family.bypass]
    try:
        for name in (family.decoder, family.blocks, family.final_norm, family.embedding):
            module_at(model, name)
        block = module_at(model, family.blocks)[0]
        for name in filter(None, inner):
            module_at(block, name)
    except AttributeError:
        return False
    return True
