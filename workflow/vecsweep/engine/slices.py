"""Files of what each process of a sharded model holds, which stage `preshard` writes."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from vecsweep import Problem
from vecsweep.files import Tensors, header_crc32, replacing

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


def near(path: Path) -> Path:
    """A copy of a file in the node's own folder that VECSWEEP_SCRATCH names; without one the file.

    Made once: one process copies, the others wait. Its name holds the checksum of the header, and the
    header those of the tensors, which who reads them checks. Where there can be no copy that is said,
    and the file is read where it is.
    """
    scratch = os.environ.get("VECSWEEP_SCRATCH")
    if not scratch:
        return path
    folder = Path(scratch) / f"vecsweep-{os.getuid()}"
    copy = folder / f"{header_crc32(path)}-{path.name}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise Problem(f"{folder} is another user's")
        with open(f"{copy}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists() or copy.stat().st_size != path.stat().st_size:
                with replacing(copy) as temporary:
                    shutil.copyfile(path, temporary)
                print(f"{path} copied to {folder}", file=sys.stderr)
        return copy
    except (OSError, Problem) as error:
        reason = (
            error if isinstance(error, Problem) else f"{folder}: {os.strerror(error.errno or 0)}"
        )
        print(f"{reason}; {path} is read where it is", file=sys.stderr)
        return path


def opened(
    folder: Path, description: dict, sharding: str, shards: int, process: int, copied: bool = False
) -> Tensors:
    """The opened file of a process; Problem unless it is whole and of this model, cut like this.

    `copied`: the copy in the node's own folder, if there is one, see `near`.
    """
    path, cure = file_of(folder, process), f"delete {folder} and run again"
    if copied and (copy := near(path)) != path:
        path, cure = copy, f"delete {copy} and run again"
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
