"""Files of what each process of a sharded model holds, which stage `preshard` writes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from vecsweep import Problem
from vecsweep.files import Tensors

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of these files


def file_of(folder: Path, process: int) -> Path:
    """The file of one process."""
    return Path(folder) / f"slice-{process}.safetensors"


def notes(description: dict, sharding: str, shards: int, process: int) -> dict[str, str]:
    """What a file says of itself, and what must be the same for a job to start from it."""
    values = {
        "model": description["model"],
        "checkpoint": description["revision"] or description["sha256"],
        "dtype": description["dtype"],
        "engine": sharding,
        "shards": shards,
        "slice": process,
        "deepspeed": metadata.version("deepspeed"),  # how tensors are cut is its own affair
        "format": FORMAT,
    }
    return {key: str(value) for key, value in values.items()}


def opened(folder: Path, description: dict, sharding: str, shards: int, process: int) -> Tensors:
    """The opened file of a process; Problem unless it is whole and of this model, cut like this."""
    path, cure = file_of(folder, process), f"delete {folder} and run again"
    file = Tensors(path, cure)
    found = file.metadata
    for key, needed in notes(description, sharding, shards, process).items():
        if found.get(key) != needed:
            raise Problem(f"{path} is for {key}: {found.get(key)}, not {needed}; {cure}")
    return file


def parts(file: Tensors, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all parameters; Problem unless just these are there.

    The tensors are the file's own pages, checked: nothing is copied.
    """
    wrong = set(shapes) ^ set(file)
    wrong |= {name for name in set(shapes) - wrong if tuple(file.shapes[name]) != shapes[name]}
    if wrong:
        raise Problem(
            f"the slice's file and the model differ in '{min(wrong)}'; run preshard again"
        )
    for name in shapes:
        yield name, file[name]
