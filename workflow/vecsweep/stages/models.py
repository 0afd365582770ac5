"""Stage `models`: bring a model here once, and write down what it is.

Writes `model.json` (family, sizes, where the weights are), `readout.safetensors` (final norm and
LM head) and `vocabulary.parquet` (each token's text), so that decoding a state needs no model, and
`tokenizer.json`, so that making prompts needs no `transformers`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from vecsweep import Problem, tables
from vecsweep.engine import folders, quantized, sources
from vecsweep.engine.checkpoint import Checkpoint, is_tied
from vecsweep.engine.families import (
    FAMILIES,
    family_of,
    is_parallel,
    logit_cap,
    logit_scale,
    module_at,
)
from vecsweep.engine.sources import PLAIN
from vecsweep.files import file_crc32, replacing, write_json, write_tensors
from vecsweep.layout import STAGES


def run(args):
    """Bring the model of `args.settings` to `args.description`'s folder and describe it."""
    config = args.settings
    name = config["model"]
    folder, revision, sha256 = fetch(name, config, args.description.parent)
    skeleton = meta_model(name, folder)
    if skeleton.config.model_type in FAMILIES:  # others may name tensors otherwise in their files
        Checkpoint(folder, skeleton).check(skeleton)
    tokenizer = tokenizer_of(name, folder)
    rows = module_at(skeleton, family_of(skeleton).embedding).num_embeddings
    own = {*tokenizer.get_vocab().values()} - {*tokenizer.added_tokens_decoder}
    folders.check_vocabulary(f"model '{name}'", folder, max(own, default=0) + 1, rows)
    description = describe(name, config, skeleton, tokenizer) | {"embeddings": rows}
    description |= {"revision": revision, "sha256": sha256}
    # Resolved, since the results may stand behind a link.
    beside = args.description.parent.resolve()
    description["weights"] = os.path.relpath(folder.resolve(), beside)
    if config["source"] == "hub":
        description["weights"] = str(folder)
    description |= rounding(name, config, folder, tokenizer)
    tensors, notes = readout_parts(name, skeleton, folder)
    description["weights_crc32"] = sources.checksums(folder)
    write_tensors(tensors, args.readout, notes)
    words = plain(name, tokenizer)
    tables.write("vocabulary", vocabulary(name, words), args.vocabulary)
    with replacing(args.tokenizer) as temporary:
        words.save(str(temporary))
    description["tokenizer_crc32"] = file_crc32(args.tokenizer)
    write_json(description, args.description)


def rounding(name: str, config: dict, folder: Path, tokenizer: Any) -> dict:
    """What `quantized` costs, on one-shot questions for capitals; nothing without that key."""
    if not config.get("quantized"):  # None in what the workflow notes
        return {}
    prompts = [tokenizer(question)["input_ids"] for question in quantized.QUESTIONS]
    dtype = getattr(torch, config["dtype"])
    found = quantized.cost(folder, dtype, config["quantized"], name, prompts)
    print(
        f"{found['quantized']}: {found['quantized_share']:.0%} of the blocks' weights; "
        f"{found['same_top']:.0%} of {len(prompts)} answers stay, divergence "
        f"{found['divergence']:.3f} nats",
        file=sys.stderr,
    )
    return found


def fetch(name: str, config: dict, target: Path) -> tuple[Path, str | None, str | None]:
    """(folder with the weights, hub revision, sha256 of the weight files) of a configured model."""
    source, expected = config["source"], config.get("sha256")
    if source == "hub":
        folder = sources.hub_snapshot(name, config)
        if expected:
            sources.check_sha256(name, sorted(folder.glob("*.safetensors")), expected)
        # Of a branch or tag its commit: that is the name of a snapshot's folder.
        return folder, folder.name, expected
    if source == "package":
        files = sources.package_files(name, config)
        sources.check_sha256(name, files, config["sha256"])
        sources.convert_gguf(files, target / "weights")
        return target / "weights", None, expected
    folder = sources.local_folder(name, config)
    files = sorted(folder.glob("*.safetensors"))
    if expected:
        sources.check_sha256(name, files, expected)
    return folder, None, expected or sources.sha256(files)


def meta_model(name: str, folder: Path) -> PreTrainedModel:
    """The model of `folder` with all parameters on the meta device: structure, no weights."""
    refuse_code(name, folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **PLAIN)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:  # a bad value raises transformers' own
        reason = " ".join(str(error).split())
        raise Problem(
            f"model '{name}': unknown model family or bad value in {folder / 'config.json'}: "
            f"{reason[:300]}; correct it, or give another model"
        ) from error


def refuse_code(name: str, folder: Path) -> None:
    """Problem if a model's class is in its own Python files: those are never run.

    Where transformers has the class itself (`model_type`), they are left alone.
    """
    content = folders.json_object(f"model '{name}'", folder / "config.json")
    if content.get("auto_map") and content.get("model_type") not in transformers.CONFIG_MAPPING:
        raise Problem(
            f"model '{name}': {folder / 'config.json'} asks for code of its own (auto_map), which is "
            "never run; give a model whose class transformers has"
        )


def describe(name: str, config: dict, skeleton: PreTrainedModel, tokenizer: Any) -> dict:
    """What later stages and the tables need to know of a model (table `models` of the summary)."""
    family = family_of(skeleton)
    layers = len(module_at(skeleton, family.blocks))
    if layers != config["layers"]:
        raise Problem(
            f"model '{name}': config says layers: {config['layers']}, the model has {layers}; "
            + folders.mended_layers(name, layers)
        )
    return {
        "model": name,
        "family": skeleton.config.model_type,
        "parallel_blocks": is_parallel(family, skeleton.config),
        "layers": layers,
        "d_model": module_at(skeleton, family.embedding).embedding_dim,
        "vocabulary": len(tokenizer),
        "parameters": sum(p.numel() for p in skeleton.parameters()),
        "context": getattr(skeleton.config, "max_position_embeddings", None),
        "dtype": config["dtype"],
        "source": config["source"],
        "step_version": STAGES["models"].version,
    }


def tokenizer_of(name: str, folder: Path) -> Any:
    """The model's tokenizer."""
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **PLAIN)
    except Exception as error:  # transformers and tokenizers each raise their own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise Problem(
            f"model '{name}': no tokenizer in {folder}: {reason}; put the model's own there"
        ) from error


def plain(name: str, tokenizer: Any) -> Tokenizer:
    """What a `transformers` tokenizer calls, set up as the model's class does it."""
    found = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(found, Tokenizer):
        raise Problem(
            f"model '{name}': its tokenizer has no fast form; put a tokenizer.json into its folder"
        )
    found.no_truncation()
    found.no_padding()
    return found


def vocabulary(name: str, tokenizer: Tokenizer) -> pa.Table:
    """The text of every token: columns model, token_id, token."""
    ids = list(range(tokenizer.get_vocab_size()))
    text = tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=False)
    columns = {"model": [name] * len(ids), "token_id": pa.array(ids, pa.int32()), "token": text}
    return pa.table(columns)


def readout_parts(
    name: str, skeleton: PreTrainedModel, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, notes) of the final norm and LM head, read from the safetensors files alone.

    Tensors: `norm.weight` [d_model], `norm.bias` if any, `head.weight` [vocabulary, d_model],
    `head.bias` if any. Notes: norm kind (layer or rms), its eps, and the soft cap if there is one.
    What the model multiplies logits by is in the norm (and the head's bias), which is as exact.
    """
    family = family_of(skeleton)
    norm, head = module_at(skeleton, family.final_norm), module_at(skeleton, family.head)
    if norm is None or head.in_features != skeleton.config.hidden_size:
        raise Problem(
            f"model '{name}': no final norm or a projected head; early decoding needs both"
        )
    files, scale = Checkpoint(folder, skeleton), logit_scale(family, skeleton.config)
    weight = files[f"{family.final_norm}.weight"].float() + family.norm_offset
    tensors = {"norm.weight": scale * weight}
    if getattr(norm, "bias", None) is not None:
        tensors["norm.bias"] = scale * files[f"{family.final_norm}.bias"].float()
    matrix = family.embedding if is_tied(skeleton) else family.head
    tensors["head.weight"] = files[f"{matrix}.weight"]
    if head.bias is not None:
        tensors["head.bias"] = scale * files[f"{family.head}.bias"].float()
    centres = isinstance(norm, torch.nn.LayerNorm) or family.norm_centres
    epsilon = getattr(norm, "eps", None) or norm.variance_epsilon
    notes = {"norm": "layer" if centres else "rms", "epsilon": repr(epsilon)}
    cap = logit_cap(family, skeleton.config)
    return tensors, notes | ({"cap": repr(cap)} if cap else {})
