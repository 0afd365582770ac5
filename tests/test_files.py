"""Results are whole or absent, and what cannot be written is said in one line."""

import os
import random
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vecsweep import Problem
from vecsweep.files import Tensors, write_json, write_rows, write_table, write_tensors

NUMBERS = list(range(100_000))
WRITERS = {
    "json": lambda path: write_json({"numbers": NUMBERS}, path),
    "parquet": lambda path: write_table(pa.table({"numbers": NUMBERS}), path),
    "safetensors": lambda path: write_tensors({"numbers": torch.tensor(NUMBERS)}, path),
    "rows": lambda path: write_rows([(range(500), {"numbers": torch.ones(500, 200)})], 500, path),
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
    # What a killed process left goes with the next result, what another one writes just now does not.
    killed = subprocess.Popen(["true"])
    killed.wait()
    host = socket.gethostname()
    left = [
        tmp_path / f".{path.name}.{writer}.tmp" for writer in (f"{killed.pid}@{host}", "7@else")
    ]
    written = [tmp_path / f".{path.name}.{writer}.tmp" for writer in (f"1@{host}", "8@else")]
    for some in left + written:
        some.write_text("half")
    os.utime(left[1], (0, 0))
    WRITERS[kind](path)
    assert {*tmp_path.iterdir()} == {path, *written}


def batches_of(tensors, seed=0):
    """Rows of tensors in batches of unequal sizes and in no order."""
    draw = random.Random(seed)
    left = list(range(len(next(iter(tensors.values())))))
    draw.shuffle(left)
    while left:
        count = draw.randint(1, 5)
        places, left = left[:count], left[count:]
        yield places, {name: tensor[places] for name, tensor in tensors.items()}


@pytest.mark.parametrize("seed", range(5))
def test_rows_as_they_come_make_the_file_of_whole_tensors(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    kinds = {"resid_post.00": torch.bfloat16, "ffn_out.00": torch.float32, "x": torch.float16}
    tensors = {
        name: torch.randn(23, 5 + place, generator=generator).to(kind)
        for place, (name, kind) in enumerate(kinds.items())
    }
    notes = {"model": "tiny", "shards": 2, "checksums": "another file's"}
    whole, rows = tmp_path / "whole", tmp_path / "rows"
    write_tensors(tensors, whole, notes)
    write_rows(batches_of(tensors, seed), 23, rows, notes)
    expected, found = Tensors(whole), Tensors(rows)
    assert found.metadata == expected.metadata
    for name, tensor in load_file(rows).items():  # the library's own reader
        assert tensor.dtype == kinds[name] and tensor.equal(tensors[name])
        assert found[name].equal(expected[name])
    with safe_open(rows, "pt") as file:
        assert sorted(file.keys()) == sorted(kinds)
    data = bytearray(rows.read_bytes())
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 1 << seed
    rows.write_bytes(data)
    with pytest.raises(Problem, match="is damaged"):
        for name in Tensors(rows):
            Tensors(rows)[name]


def test_rows_that_are_missing_leave_no_file(tmp_path):
    batches = list(batches_of({"x": torch.ones(23, 5)}))[:-1]
    with pytest.raises(Problem, match="rows are missing in the file: [1-5] of 23"):
        write_rows(batches, 23, tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_rows_come_from_is_named(tmp_path):
    weights, rows = tmp_path / "weights", tmp_path / "results" / "rows"

    def batches():
        yield [0], {"x": torch.ones(1, 5)}
        weights.read_bytes()

    with pytest.raises(Problem, match=f"^cannot write {rows}: {weights}: No such file"):
        write_rows(batches(), 2, rows)
    rows.parent.rmdir()
    rows.parent.touch()
    with pytest.raises(Problem, match=f"^cannot write {rows}: File exists$"):
        write_rows([], 0, rows)


def anonymous():
    """MB of memory that no file lies behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def test_rows_as_they_come_are_not_held_in_memory(tmp_path):
    taken = []

    def batches():
        for i in range(160):
            yield [i], {"x": torch.full((1, 2**18), float(i))}
            taken.append(anonymous())

    write_rows(batches(), 160, tmp_path / "rows")
    assert (tmp_path / "rows").stat().st_size > 160 * 2**20
    assert max(taken) - taken[0] < 40, "of 160 MB"


LAST = """
import sys, torch
from vecsweep.files import read_table
sys.exit(read_table(sys.argv[1]).num_rows != 1)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_a_table_may_be_the_last_thing_that_is_read(tmp_path, attempt):
    """Threads of pyarrow's that start as Python ends would abort it, nearly always on one core."""
    write_table(pa.table({"number": [7]}), tmp_path / "table.parquet")
    words = [sys.executable, "-c", LAST, tmp_path / "table.parquet"]
    (core, *_) = os.sched_getaffinity(0)
    alone = partial(os.sched_setaffinity, 0, {core})
    done = subprocess.run(words, preexec_fn=alone, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
