"""Single tensors out of a safetensors checkpoint, by the model's own parameter names."""

import json
import math
from pathlib import Path

from vecsweep import Problem


def check_files(folder: Path) -> None:
    """Problem unless every safetensors file of a folder is there and whole; reads headers only."""
    files = set(_index(folder).values()) or {p.name for p in folder.glob("*.safetensors")}
    for file in sorted(files):
        opened(folder / file)


def from_pretrained(folder: Path, dtype):
    """The causal LM of a folder, in one process; Problem unless files and model fit each other.

    `transformers` itself only warns, and leaves random numbers where a tensor is missing.
    """
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused here, by name
    )
    shapes = {key: (tuple(has), tuple(needs)) for key, has, needs in found["mismatched_keys"]}
    unused = [key for key in found["unexpected_keys"] if not derived(key)]
    _refuse(folder, found["missing_keys"], unused, shapes)
    return model.eval()


def _refuse(folder, missing, unused, shapes):
    """Problem if a parameter has no tensor, a tensor no parameter, or their shapes differ."""
    for name, (has, needs) in sorted(shapes.items()):
        raise Problem(f"{folder}: '{name}' has shape {has}, the model needs {needs}")
    if missing:
        raise Problem(f"{folder}: the checkpoint has no tensor for '{min(missing)}'")
    if unused:
        raise Problem(f"{folder}: {len(unused)} tensors were not used, the first '{min(unused)}'")


def derived(key: str) -> bool:
    """Whether a key is no parameter: old files hold attention masks and rotary tables."""
    ends = (".attn.bias", ".masked_bias", ".rotary_emb.inv_freq", "attention.bias")
    return key.endswith(ends) or key == "lm_head.weight"


def _index(folder):
    """key -> file name, of a checkpoint in several files; else empty."""
    index = Path(folder) / "model.safetensors.index.json"
    return json.loads(index.read_text())["weight_map"] if index.is_file() else {}


def opened(path: Path, cure: str = "fetch it again"):
    """A safetensors file, opened; Problem unless it is there and whole, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise Problem(f"{path} is missing or damaged ({reason}); {cure}") from error


class Checkpoint:
    """The safetensors files of a hub-format folder, opened lazily.

    `checkpoint["transformer.ln_f.weight"]` reads one tensor in the file's own dtype. Files saved
    from the bare decoder lack its prefix ("ln_f.weight"), so a name is tried both ways.
    """

    def __init__(self, folder: Path, skeleton):
        self.folder = Path(folder)
        self._prefix = skeleton.base_model_prefix + "."
        self._open = {}
        self.file_of = _index(self.folder) or {
            key: path.name
            for path in sorted(self.folder.glob("*.safetensors"))
            for key in self._handle(path.name).keys()
        }

    def key_of(self, name: str) -> str | None:
        """The checkpoint's key for a parameter name, None if it has none."""
        # GPT-NeoX files call the LM head embed_out.
        for key in (name, name.replace("lm_head.", "embed_out.")):
            for candidate in (key, key.removeprefix(self._prefix), self._prefix + key):
                if candidate in self.file_of:
                    return candidate
        return None

    def __contains__(self, name):
        return self.key_of(name) is not None

    def __getitem__(self, name):
        key = self.key_of(name)
        if key is None:
            raise Problem(f"{self.folder}: the checkpoint has no tensor '{name}'")
        return self._handle(self.file_of[key]).get_tensor(key)

    def check(self, skeleton) -> None:
        """Problem unless these tensors are just the parameters of a model, by name and shape.

        Reads headers only, so that all ranks of a sharded model find the same.
        """
        names: dict[int, list] = {}
        shapes, missing, used = {}, [], set()
        for name, parameter in skeleton.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append((name, tuple(parameter.shape)))
        for tied in names.values():  # one of several names will do
            keys = {key: needs for name, needs in tied if (key := self.key_of(name))}
            used |= set(keys)
            if not keys:
                missing.append(tied[0][0])
            for key, needs in keys.items():
                has = tuple(self._handle(self.file_of[key]).get_slice(key).get_shape())
                if has != needs:
                    shapes[key] = has, needs
        unused = [key for key in self.file_of if key not in used and not derived(key)]
        _refuse(self.folder, missing, unused, shapes)

    def by_file(self, names, twins: dict[str, str]):
        """Yield (name, key) of parameters file by file, with one file open at a time.

        `twins` gives the other name of a tied parameter.
        """
        keys = {name: self.key_of(name) or self.key_of(twins[name]) for name in names}
        last = None
        for name in sorted(keys, key=lambda name: (self.file_of[keys[name]], keys[name])):
            if self.file_of[keys[name]] != last:
                self._open.clear()
                last = self.file_of[keys[name]]
            yield name, keys[name]
        self._open.clear()

    def slice(self, name: str, shape: tuple, rank: int, world: int):
        """The part of a tensor that a rank holds, read without the rest.

        It is cut along the one dimension in which `shape` is smaller than the tensor.
        """
        key = self.key_of(name)
        part = self._handle(self.file_of[key]).get_slice(key)
        full = tuple(part.get_shape())
        if full == shape:
            return part[:]
        cut = [i for i, (a, b) in enumerate(zip(full, shape)) if a != b]
        if len(full) != len(shape) or len(cut) != 1 or shape[cut[0]] * world != full[cut[0]]:
            raise Problem(f"{self.folder}: '{key}' of shape {full} does not split into {shape}")
        start = rank * shape[cut[0]]
        rows = slice(start, start + shape[cut[0]])
        return part[rows] if cut[0] == 0 else part[:, rows]

    def flat(self, name: str, start: int, stop: int):
        """Elements start..stop of a flattened tensor, read without the rest; none past its end."""
        key = self.key_of(name)
        part = self._handle(self.file_of[key]).get_slice(key)
        row = math.prod(part.get_shape()[1:])
        first, last = start // row, -(-stop // row)
        if first >= last:
            return part[:0].flatten()
        return part[first:last].flatten()[start - first * row : stop - first * row]

    def _handle(self, file: str):
        if file not in self._open:
            self._open[file] = opened(self.folder / file)
        return self._open[file]
