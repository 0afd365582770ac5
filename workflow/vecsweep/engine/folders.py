"""A model's folder judged by its JSON files and the headers of its tensors: nothing is loaded.

The workflow asks before any job starts, stage `models` again of what it fetched. Neither torch nor
transformers is imported; what only they can tell, stage `models` says.
"""

import filecmp
import json
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from vecsweep import Problem, nearest
from vecsweep.engine.families import FAMILIES, size_in
from vecsweep.files import text_in
from vecsweep.series import MARK

# One set of these is a tokenizer that transformers can make the fast form of.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
NOT_CAUSAL = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForPreTraining"),
    *("ForQuestionAnswering", "ForMultipleChoice", "EncoderModel"),
)
PIECE = 65_536  # bytes of a file that tell it from others
LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
# One model in two of these is a comparison, not a slip.
TELL_APART = ("dtype", "quantized", "shards", "engine", "offload")
AGAIN = "fetch the model again"


def check_all(models: dict[str, dict], waiting: list[str]) -> None:
    """Problem at the first model of a config that cannot be swept, or is another one's double.

    `models`: the checked config's. Of those that are `waiting` for stage `models` the folder is
    read, if it is here already; what is fetched is judged when it came.
    """
    for name in waiting:
        if models[name]["source"] == "local":
            check(name, Path(models[name]["path"]).expanduser(), models[name]["layers"])
    names = list(models)
    for k, name in enumerate(names):
        for other in names[:k]:
            if any(models[name].get(key) != models[other].get(key) for key in TELL_APART):
                continue
            if what := _shared(models[other], models[name], name in waiting or other in waiting):
                raise Problem(
                    f"config, models: '{other}' and '{name}' are the same weights ({what}) in one "
                    "dtype, and would count as two models; remove one"
                )


def _shared(one: dict, other: dict, compare: bool) -> str | None:
    """What two models have in common that makes them one; None if they are two."""
    for keys in (("sha256",), ("files",), ("id", "revision")):
        if all(one.get(key) and one.get(key) == other.get(key) for key in keys):
            return keys[0]
    if one["source"] != "local" or other["source"] != "local":
        return None
    folders = [Path(os.path.realpath(Path(m["path"]).expanduser())) for m in (one, other)]
    if folders[0] == folders[1]:
        return f"path {folders[0]}"
    if compare:
        files = [sorted(folder.glob("*.safetensors")) for folder in folders]
        sizes = [[path.stat().st_size for path in some] for some in files]
        # Read to the first byte that differs: two models of one size part in their first tensor.
        if sizes[0] and sizes[0] == sizes[1] and all(map(_same, *files)):
            return f"{files[0][0]} is {files[1][0]}, byte by byte"
    return None


def _same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading reads: what the index names, or all where there is none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [
            folder / name
            for name in sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
        ]
    return sorted(folder.glob("*.safetensors"))


def check(name: str, folder: Path, layers: int | None = None) -> None:
    """Problem unless a folder in hub format has all of a causal LM, and its parts fit each other.

    `layers` is the config's number of blocks.
    """
    about = f"model '{name}'"
    try:
        files = set(os.listdir(folder))
    except OSError as error:
        files = set()
        if MARK in name and isinstance(error, FileNotFoundError):
            beside = [path.name for path in sorted(folder.parent.glob("*/"))]
            there = f"; there are {', '.join(beside[:20])}" if beside else ""
            raise Problem(
                f"{about}: no folder {folder}{nearest(folder.name, beside)}{there}; write one of them "
                "under revisions, or correct path"
            ) from error
        if error.errno and not isinstance(error, FileNotFoundError):
            raise Problem(
                f"{about}: cannot read {folder}: {os.strerror(error.errno)}; give a folder in hub format"
            ) from error
    if "config.json" not in files:
        raise Problem(f"{about}: no config.json in {folder}; give a folder in hub format")
    content = json_object(about, folder / "config.json")
    _check_kind(about, folder / "config.json", content)
    found = size_in(content, "layers")
    if layers and isinstance(found, int) and found != layers:
        raise Problem(
            f"{about}: config says layers: {layers}, the model has {found}; "
            f"{mended_layers(name, found)}"
        )
    if not any(file.endswith(".safetensors") for file in files):
        raise Problem(
            f"{about}: no *.safetensors weights in {folder}; "
            "convert pickled weights with transformers' save_pretrained first"
        )
    shapes = tensor_shapes(about, folder)
    rows = _check_embedding(about, folder, content, shapes)
    if not any(files.issuperset(some) for some in TOKENIZERS) and not any(
        file.endswith(".model") for file in files
    ):
        raise Problem(
            f"{about}: no tokenizer in {folder}; put its tokenizer.json, or vocab.json and merges.txt, "
            "there"
        )
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if file in files:
            json_object(about, folder / file)
    if "tokenizer.json" in files:
        path = folder / "tokenizer.json"
        check_vocabulary(about, path, tokens_in(about, path), rows)


def mended_layers(name: str, found: int) -> str:
    """How to mend a config's `layers`."""
    if MARK in name:
        return "revisions of an entry share it: remove this one, or write an entry of its own"
    return f"write layers: {found}"


def _check_kind(about, path, content):
    """Problem unless a config.json is of a decoder-only language model."""
    family = content.get("model_type")
    if not isinstance(family, str) or not family:
        raise Problem(f"{about}: {path} has no model_type; {AGAIN}, or give another")
    classes = content.get("architectures")
    classes = [str(one) for one in classes] if isinstance(classes, list) else []
    if content.get("is_encoder_decoder") is True:
        raise Problem(
            f"{about}: {path}: '{family}' is an encoder-decoder; give a decoder-only model, of which "
            "each token is told from those before it"
        )
    if content.get("use_bidirectional_attention") in (True, "all"):  # Gemma's
        raise Problem(
            f"{about}: {path}: with use_bidirectional_attention tokens are told from those after them "
            "too; give a causal model, whose prompts can share a beginning"
        )
    if isinstance(rounded := content.get("quantization_config"), dict):
        raise Problem(
            f"{about}: {path}: its weights are packed ({rounded.get('quant_method', 'no name')}); give "
            "whole ones, as transformers' save_pretrained writes them after loading with dequantize=True"
        )
    if "text_config" in content and "vision_config" in content and family not in FAMILIES:
        raise Problem(
            f"{about}: {path}: '{family}' reads pictures too; give its language model, saved as a causal "
            "LM of its own"
        )
    if classes and all(one.endswith(NOT_CAUSAL) for one in classes):
        raise Problem(
            f"{about}: {path}: {', '.join(classes)} does not say the next token; give a causal LM"
        )


def fingerprint(folder: Path) -> list[str]:
    """What tells the files of a model from others': names, sizes, checksums of three pieces of each.

    Whole weights would take too long, each time that a sweep is laid out; stage `models` has those.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.is_file():
            size, crc = path.stat().st_size, 0
            with open(path, "rb") as file:
                for start in sorted({0, max(0, (size - PIECE) // 2), max(0, size - PIECE)}):
                    file.seek(start)
                    crc = zlib.crc32(file.read(PIECE), crc)
            found.append(f"{path.name} {size} {crc:08x}")
    return found


def check_vocabulary(about: str, where: Path, tokens: int, rows: int | None) -> None:
    """Problem unless a tokenizer's own tokens can be those of a model with that many embeddings.

    Checkpoints are padded, by some percent; a tokenizer of half the size is another model's. Tokens
    that were added to it may have no embedding: Gemma 3's for a picture stands behind the last one.
    """
    if rows and not rows / 2 <= tokens <= rows:
        raise Problem(
            f"{about}: {where} has {tokens} tokens, the model {rows}: it is not its tokenizer; put the "
            "model's own there"
        )


def tensor_shapes(about: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a folder, by its key; Problem at a file that is not whole."""
    index = folder / "model.safetensors.index.json"
    if not os.path.lexists(index):
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        return {key: shape for file in files for key, shape in header(about, folder / file).items()}
    listed = json_object(about, index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise Problem(f"{about}: {index} has no weight_map of tensors to files; {AGAIN}")
    for file in listed.values():
        if Path(file).name != file:
            raise Problem(f"{about}: {index} names '{file}', outside its folder; {AGAIN}")
    headers = {file: header(about, folder / file) for file in sorted(set(listed.values()))}
    for key, file in listed.items():
        if key not in headers[file]:
            raise Problem(f"{about}: {index} puts '{key}' into {file}, which has it not; {AGAIN}")
    return {key: headers[file][key] for key, file in listed.items()}


def header(about: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by key, from the header of a safetensors file that is as long as it says."""
    try:
        if not os.path.isdir(path) and not path.is_file() and path.exists():
            raise ValueError("a device or pipe")  # to open one may never end
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length).decode("utf-8"))
        tensors = {key: entry for key, entry in entries.items() if key != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if end != size - 8 - length:
            raise ValueError(f"{size - 8 - length} bytes of tensors, not {end}")
        return {key: tuple(entry["shape"]) for key, entry in tensors.items()}
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise Problem(f"{about}: {path} is missing or damaged ({reason}); {AGAIN}") from error
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise Problem(f"{about}: {path} is missing or damaged ({reason}); {AGAIN}") from error


def _check_embedding(about, folder, content, shapes) -> int | None:
    """The number of embeddings, by config.json; Problem if the weights have another."""
    rows = content.get("vocab_size")
    family = FAMILIES.get(content["model_type"])
    if not isinstance(rows, int) or not family:
        return rows if isinstance(rows, int) else None
    name = f"{family.embedding}.weight"
    for key in (name, name.partition(".")[2]):
        if key in shapes and (not shapes[key] or shapes[key][0] != rows):
            raise Problem(
                f"{about}: '{key}' in {folder} has shape {shapes[key]}, config.json says vocab_size: "
                f"{rows}; {AGAIN}: the two are of different models"
            )
    if shapes and not any(math.prod(shape) for shape in shapes.values()):
        raise Problem(f"{about}: the weights in {folder} hold no numbers; {AGAIN}")
    return rows


def tokens_in(about: str, path: Path) -> int:
    """How many tokens a tokenizer.json knows without added ones, by the largest of their numbers."""
    content = json_object(about, path)
    try:
        known = content["model"]["vocab"]
        numbers = list(known.values()) if isinstance(known, dict) else list(range(len(known)))
        added = {token["id"] for token in content.get("added_tokens") or []}
        return max({*numbers} - added or added) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{about}: {path} is no tokenizer: it has no vocabulary; {AGAIN}") from error


def json_object(about: str, path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder."""
    try:
        content = json.loads(text_in(path, "utf-8"))
    except Problem as problem:
        raise Problem(f"{about}: {problem}") from problem
    except (ValueError, RecursionError) as error:
        raise Problem(f"{about}: {path} is not JSON: {error}; {AGAIN}") from error
    if not isinstance(content, dict):
        raise Problem(f"{about}: {path} is no JSON object, with keys in braces; {AGAIN}")
    return content
