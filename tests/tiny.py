"""Tiny random models of every family, a real small tokenizer, and small tasks: no downloads.

Norm scales, norm offsets and biases are random too, so that a forgotten one shows.
"""

from pathlib import Path

import torch
import transformers
import yaml

CAPITALS = {
    "Poland": "Warsaw", "China": "Beijing", "France": "Paris", "Japan": "Tokyo",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo",
    "Ghana": "Accra", "Egypt": "Cairo", "United Kingdom": "London", "Chad": "N'Djamena",
    "Bolivia": "Sucre|La Paz",
}  # fmt: skip
PASTS = {"walk": "ran", "see": "saw", "go": "went", "bring": "brought", "abolish": "ended"}
TASKS = {
    "towns": {
        "title": "Towns",
        "kind": "one-to-one",
        "templates": ["Q: What is the capital of {argument}?\nA: {answer}"],
        "separator": "\n",
        "demonstrations": ["France"],
        "extractive": {"prefix": "The capital of {argument} is {answer}.\n"},
    },
    "verbs": {
        "title": "Verbs",
        "kind": "one-to-one",
        "templates": ["Today I {argument}. Yesterday I {answer}."],
        "separator": " ",
        "extractive": {"prefix": "The past tense of {argument} is {answer}.\n"},
    },
}
ROWS = {"towns": CAPITALS, "verbs": PASTS}
# More tokens than the tokenizer has, as padded checkpoints have; no multiple of a chunk.
EXTRA_TOKENS = 5


def write_task(folder, name, rows=None, **changes):
    """Write NAME.yaml and NAME.csv; `changes` replace keys, None removes one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = TASKS.get(name, TASKS["towns"] | {"demonstrations": []})
    content = base | {"data": f"{name}.csv"} | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    rows = ROWS.get(name, CAPITALS) if rows is None else rows
    lines = ["argument,answer", *(f"{a},{b}" for a, b in rows.items())]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.yaml"


def tokenizer(bos=False):
    """A byte-level BPE trained on the tasks' own words, with or without a first special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Long names come once: they stay split into several tokens, as in real vocabularies.
    texts = [task["templates"][0] + task["extractive"]["prefix"] for task in TASKS.values()]
    words = [f" {word}" for rows in ROWS.values() for pair in rows.items() for word in pair]
    raw.train_from_iterator(texts * 3 + [word for word in words if len(word) < 8] * 2, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>"
    )


VOCABULARY = len(tokenizer()) + EXTRA_TOKENS

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
_GEMMA = _GROUPED | {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ],
}

# Families that all exactness tests run on, and NeoX with sequential blocks too: (model type, its
# config).
CONFIGS = {
    "gpt2": ("gpt2", _GPT2),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", _COMMON | {"rotary_pct": 0.5}),
    "gpt_neox-sequential": ("gpt_neox", _COMMON | {"use_parallel_residual": False}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "opt": ("opt", _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", _GROUPED | {"sliding_window": 5}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _GROUPED | {"head_dim": 8}),
    "gemma3_text": ("gemma3_text", _GEMMA),
}
_PADDED = _GROUPED | {"pad_token_id": 0}
_EXPERTS = _PADDED | {"num_experts_per_tok": 2, "num_local_experts": 4}
_SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
# Listed too, but alike enough to have one test each (tests/test_families.py). Special token ids
# that a family has by default may lie outside the tiny vocabulary.
ALIKE = {
    "gemma2": (
        "gemma2",
        _GEMMA | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    ),
    "phi3": ("phi3", _PADDED),
    "phi3-long": (
        "phi3",
        _PADDED
        | {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [2.0, 5.0, 9.0, 20.0],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "smollm3": ("smollm3", _PADDED | {"no_rope_layers": [1, 0, 1]}),
    "nemotron": ("nemotron", _GROUPED | {"pad_token_id": 0, "head_dim": 8}),
    "stablelm": ("stablelm", _GROUPED | {"use_parallel_residual": False}),
    "stablelm-parallel": (
        "stablelm",
        _GROUPED | {"use_parallel_residual": True, "qk_layernorm": True},
    ),
    "granite": (
        "granite",
        _PADDED
        | {
            "residual_multiplier": 0.3,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.2,
            "logits_scaling": 3.0,
        },
    ),
    "cohere": ("cohere", _PADDED | {"logit_scale": 0.3, "use_qk_norm": True}),
    "olmo2": ("olmo2", _PADDED),
    "olmo3": ("olmo3", _PADDED | {"sliding_window": 5, "layer_types": _SLIDING}),
    "glm4": ("glm4", _PADDED | {"head_dim": 8}),
    "falcon": ("falcon", _COMMON | {"multi_query": True}),
    "falcon-two-norms": (
        "falcon",
        _COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-sequential": (
        "falcon",
        _COMMON | {"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True},
    ),
    "mpt": (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
    ),
    "mixtral": ("mixtral", _EXPERTS),
    "qwen3_moe": (
        "qwen3_moe",
        _PADDED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": ("olmoe", _PADDED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "gpt_oss",
        _EXPERTS | {"head_dim": 8, "sliding_window": 5, "layer_types": _SLIDING},
    ),
    "llama4_text": (
        "llama4_text",
        _EXPERTS
        | {
            "num_hidden_layers": 4,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 5,
            "no_rope_layers": [1, 1, 0, 1],
            "floor_scale": 4,
        },
    ),
}
# Not listed in families.py: the first four fit a row by name and obey its identities, the next two
# only fit by name, the last fits no row.
UNLISTED = {
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 256,
        },
    ),
    "arcee": ("arcee", _GROUPED),
    "codegen": ("codegen", _GPT2 | {"rotary_dim": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        _GROUPED
        | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"shared_expert_intermediate_size": 40},
    ),
    "exaone4": ("exaone4", _PADDED),
    "granite_swa": ("granite_swa", _PADDED | {"residual_multiplier": 0.5}),
    "phi": ("phi", _COMMON),
}
_ALL = CONFIGS | ALIKE | UNLISTED
KINDS = list(CONFIGS)


def layers_of(kind):
    config = _ALL[kind][1]
    return next(
        config[key]
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if key in config
    )


def model(kind, seed=0):
    """A random fp32 model; its scale keeps attention, FFN and norms all felt."""
    model_type, settings = _ALL[kind]
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.AutoConfig.for_model(model_type, **(special | settings))
    made = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:  # around 1 for norm scales, around 0 for biases
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return made


def save(kind, folder, seed=0, bos=False, bare=False, shard_size=None):
    """Save model and tokenizer as a folder in hub format; returns the model."""
    made = model(kind, seed)
    saved = made.base_model if bare else made
    saved.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    if bare:  # the bare decoder names another class; the config stays that of the causal LM
        made.config.save_pretrained(folder)
    tokenizer(bos).save_pretrained(folder)
    return made


def prompt_rows(kind="towns", count=None, folder=None, bos=False, **settings):
    """Rows of stage prompts for a small task."""
    from vecsweep import tasks
    from vecsweep.stages import prompts

    task = tasks.load(write_task(folder, kind))
    rows = prompts.build(
        task,
        tokenizer(bos).backend_tokenizer,
        {"demonstrations": 1, "seed": 0, "max_prompts": count} | settings,
    )
    return rows


def config(kind, folder, **changes):
    """The model's part of config.yaml, as stage models gets it."""
    found = {"source": "local", "path": str(folder), "dtype": "float32"}
    if "layers" not in changes:
        found["layers"] = layers_of(kind)
    return found | changes
