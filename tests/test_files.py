"""Results are whole or absent, and what cannot be written is said in one line."""

import resource

import pyarrow as pa
import pytest
import torch

from vecsweep import Problem
from vecsweep.files import write_json, write_table, write_tensors

NUMBERS = list(range(100_000))
WRITERS = {
    "json": lambda path: write_json({"numbers": NUMBERS}, path),
    "parquet": lambda path: write_table(pa.table({"numbers": NUMBERS}), path),
    "safetensors": lambda path: write_tensors({"numbers": torch.tensor(NUMBERS)}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk(tmp_path, kind):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    path = tmp_path / f"result.{kind}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        with pytest.raises(Problem, match=f"cannot write {path}: .*File too large"):
            WRITERS[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    # What a killed process left goes with the next result.
    (tmp_path / f".{path.name}.123.tmp").write_text("half")
    WRITERS[kind](path)
    assert list(tmp_path.iterdir()) == [path]
