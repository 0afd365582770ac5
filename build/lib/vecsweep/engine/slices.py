"""Files of what each rank of a sharded model holds, which stage `preshard` writes."""

from importlib import metadata
from pathlib import Path

from vecsweep import STEP_VERSIONS, Problem
from vecsweep.engine import checkpoint


def file_of(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return Path(folder) / f"rank-{rank}.safetensors"


def notes(description: dict, engine: str, shards: int, rank: int) -> dict[str, str]:
    """What a file says of itself, and what must be the same for a job to start from it."""
    values = {
        "model": description["model"],
        "checkpoint": description["revision"] or description["sha256"],
        "dtype": description["dtype"],
        "engine": engine,
        "shards": shards,
        "rank": rank,
        "deepspeed": metadata.version("deepspeed"),  # how tensors are cut is its own affair
        "step_version": STEP_VERSIONS["preshard"],
    }
    return {key: str(value) for key, value in values.items()}


def opened(folder: Path, description: dict, engine: str, shards: int, rank: int):
    """The opened file of one rank; Problem unless it is whole and of this model, cut like this."""
    path, cure = file_of(folder, rank), f"delete {folder} and run again"
    file = checkpoint.opened(path, cure)
    found = file.metadata() or {}
    for key, needed in notes(description, engine, shards, rank).items():
        if found.get(key) != needed:
            raise Problem(f"{path} is for {key}: {found.get(key)}, not {needed}; {cure}")
    return file


def parts(file, shapes: dict[str, tuple]):
    """Yield (name, tensor) of all parameters; Problem unless just these are there.

    The tensors are the file's own pages: nothing is copied, and their content is not checked.
    """
    wrong = set(shapes) ^ set(file.keys())
    wrong |= {
        name
        for name in set(shapes) - wrong
        if tuple(file.get_slice(name).get_shape()) != shapes[name]
    }
    if wrong:
        raise Problem(f"the rank's file and the model differ in '{min(wrong)}'; run preshard again")
    for name in shapes:
        yield name, file.get_tensor(name)
