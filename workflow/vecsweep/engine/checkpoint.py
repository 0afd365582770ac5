"""Single tensors out of a safetensors checkpoint, by the model's own parameter names."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vecsweep import Problem
from vecsweep.engine.families import Family, family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Shape = tuple[int, ...]
AGAIN = "fetch the model again"


def check_files(folder: Path) -> None:
    """Problem unless every safetensors file of a folder is there and whole; reads headers only."""
    files = set(_index(folder).values()) or {p.name for p in folder.glob("*.safetensors")}
    for file in sorted(files):
        opened(folder / file)


def refuse(
    folder: Path,
    missing: Collection[str],
    unused: Collection[str],
    shapes: Mapping[str, tuple[Shape, Shape]],
) -> None:
    """Problem if a parameter has no tensor, a tensor no parameter, or their shapes differ.

    `shapes` has those that differ: key -> (the tensor's, the parameter's).
    """
    for name, (has, needs) in sorted(shapes.items()):
        raise Problem(f"{folder}: '{name}' has shape {has}, the model needs {needs}; {AGAIN}")
    if missing:
        raise Problem(f"{folder}: the checkpoint has no tensor for '{min(missing)}'; {AGAIN}")
    if unused:
        raise Problem(
            f"{folder}: {len(unused)} tensors were not used, the first '{min(unused)}'; {AGAIN}"
        )


def unneeded(family: Family, key: str) -> bool:
    """Whether a key that no parameter has may stand in a file: a mask or table, or a tied head."""
    return key.endswith(family.no_parameters) or key == f"{family.head}.weight"


def _index(folder: Path) -> dict[str, str]:
    """key -> file name, of a checkpoint in several files; else empty."""
    index = Path(folder) / "model.safetensors.index.json"
    return json.loads(index.read_text("utf-8"))["weight_map"] if index.is_file() else {}


def opened(path: Path, cure: str = "fetch it again") -> safe_open:
    """A safetensors file, opened; Problem unless it is there and whole, by its header."""
    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise Problem(f"{path} is missing or damaged ({reason}); {cure}") from error


class Checkpoint:
    """The safetensors files of a hub-format folder, opened lazily.

    `checkpoint["transformer.ln_f.weight"]` reads one tensor in the file's own dtype. `skeleton` is
    the model without its weights. Files saved from the bare decoder lack its prefix
    ("ln_f.weight"), so a name is tried both ways; of tied parameters either name will do. What a
    file has in parts (experts one by one) goes by the parameter's name: see `flat`.
    """

    def __init__(self, folder: Path, skeleton: PreTrainedModel):
        self.folder = Path(folder)
        self.family = family_of(skeleton)
        self._prefix = skeleton.base_model_prefix + "."
        self._twins = {}
        if is_tied(skeleton):
            head, embedding = f"{self.family.head}.weight", f"{self.family.embedding}.weight"
            self._twins = {head: embedding, embedding: head}
        self._open: dict[str, safe_open] = {}
        self._parts: dict[str, list[list[str]]] = {}  # name -> keys of each expert
        self.file_of = _index(self.folder) or {
            key: path.name
            for path in sorted(self.folder.glob("*.safetensors"))
            for key in self._handle(path.name).keys()
        }

    def key_of(self, name: str) -> str | None:
        """The checkpoint's key for a parameter name, None if it has none."""
        names = [name]
        for end, keys in self.family.in_files:
            if name.endswith(end) and "{}" not in keys[0]:
                names.append(name.removesuffix(end) + keys[0])
            elif name.endswith(end):
                return self._gather(name, name.removesuffix(end), keys)
        if self.family.head_in_files:
            names.append(name.replace(f"{self.family.head}.", f"{self.family.head_in_files}."))
        names += [self._twins[name]] if name in self._twins else []
        for each in names:
            for candidate in (each, each.removeprefix(self._prefix), self._prefix + each):
                if candidate in self.file_of:
                    return candidate
        return None

    def _gather(self, name: str, front: str, ends: tuple[str, ...]) -> str | None:
        """Note which keys, expert by expert, are a parameter; its name, None if one is missing."""
        if name not in self._parts:
            numbered = ([f"{front}{end.format(n)}" for end in ends] for n in itertools.count())
            some = itertools.takewhile(lambda keys: any(k in self.file_of for k in keys), numbered)
            experts = list(some)
            if not experts or any(key not in self.file_of for keys in experts for key in keys):
                return None
            self._parts[name] = experts
            self.file_of[name] = self.file_of[experts[0][0]]
        return name

    def __getitem__(self, name: str) -> torch.Tensor:
        key = self._found(name)
        return self._handle(self.file_of[key]).get_tensor(key)

    def check(self, skeleton: PreTrainedModel) -> None:
        """Problem unless these tensors are just the parameters of a model, by name and shape.

        Reads headers only, so that all processes of a sharded model find the same.
        """
        shapes, missing, used = {}, [], set()
        for name, parameter in skeleton.named_parameters(remove_duplicate=False):
            key, needs = self.key_of(name), tuple(parameter.shape)
            if key is None:
                missing.append(name)
                continue
            used.add(key)
            used.update(part for keys in self._parts.get(key, []) for part in keys)
            has = self._shape(key)
            if has != needs:
                shapes[key] = has, needs
        unused = [k for k in self.file_of if k not in used and not unneeded(self.family, k)]
        refuse(self.folder, missing, unused, shapes)

    def by_file(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (name, key) of parameters file by file, with one file open at a time."""
        keys = {name: self._found(name) for name in names}
        last = None
        for name in sorted(keys, key=lambda name: (self.file_of[keys[name]], keys[name])):
            if self.file_of[keys[name]] != last:
                self._open.clear()
                last = self.file_of[keys[name]]
            yield name, keys[name]
        self._open.clear()

    def slice(self, key: str, shape: Shape, process: int, processes: int) -> torch.Tensor:
        """The slice of a tensor that one of several processes holds, read without the rest.

        It is cut along the one dimension in which `shape` is smaller than the tensor.
        """
        part = self._part(key)
        full = tuple(part.get_shape())
        if full == shape:
            return part[:]
        cut = [i for i, (a, b) in enumerate(zip(full, shape)) if a != b]
        if len(full) != len(shape) or len(cut) != 1 or shape[cut[0]] * processes != full[cut[0]]:
            raise Problem(f"{self.folder}: '{key}' of shape {full} does not split into {shape}")
        start = process * shape[cut[0]]
        rows = slice(start, start + shape[cut[0]])
        return part[rows] if cut[0] == 0 else part[:, rows]

    def flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Elements start..stop of a flattened tensor, read without the rest; none past its end.

        Of experts, each expert's matrices stand one after another.
        """
        if key in self._parts:
            import torch

            found, before = [], 0
            for piece in itertools.chain(*self._parts[key]):
                size = math.prod(self._shape(piece))
                if start < before + size and before < stop:
                    found.append(self.flat(piece, max(0, start - before), min(size, stop - before)))
                before += size
            return torch.cat(found) if found else torch.empty(0)
        part = self._part(key)
        row = math.prod(part.get_shape()[1:])
        first, last = start // row, -(-stop // row)
        if first >= last:
            return part[:0].flatten()
        return part[first:last].flatten()[start - first * row : stop - first * row]

    def _found(self, name: str) -> str:
        key = self.key_of(name)
        if key is None:
            raise Problem(f"{self.folder}: the checkpoint has no tensor for '{name}'")
        return key

    def _shape(self, key: str) -> Shape:
        if key not in self._parts:
            return tuple(self._part(key).get_shape())
        experts = self._parts[key]
        shapes = {self._shape(piece) for keys in experts for piece in keys}
        rows, *rest = min(shapes)
        return len(experts), len(experts[0]) * rows if len(shapes) == 1 else 0, *rest

    def _part(self, key: str) -> Any:
        return self._handle(self.file_of[key]).get_slice(key)

    def _handle(self, file: str) -> safe_open:
        if file not in self._open:
            self._open[file] = opened(self.folder / file)
        return self._open[file]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the LM head's weight is the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight
