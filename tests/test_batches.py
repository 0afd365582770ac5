"""What does not fit in memory is tried again in halves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from conftest import REPO, run_stage
from vecsweep import Problem
from vecsweep.engine import batches, load


def test_in_a_process_of_its_own():
    """In one that has run other tests, what they left free would be room."""
    words = ["-m", "pytest", "-q", "-p", "no:xdist", str(Path(__file__).with_name("limited.py"))]
    # Of options meant for this process, such as one more -q, the line below must not depend.
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, *words], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "error, is_memory",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_is_no_memory(error, is_memory):
    def fail():
        raise error

    if is_memory:
        assert batches.fitted(fail) is None
    else:
        with pytest.raises(type(error)):
            batches.fitted(fail)


def test_never_below_one_prompt(tmp_path):
    engine = load.engine_of(tiny.model("gpt2"), 64, "tiny")
    batches.halve(engine, 2, 100)
    assert engine.batch_tokens == 32
    with pytest.raises(Problem, match="tiny: 9 tokens .* cannot be cut; give the job more memory"):
        batches.halve(engine, 1, 9)
    engine.sharding = "tensor"  # the others wait for this process: it cannot go on alone
    with pytest.raises(
        Problem, match="^tiny: 40 tokens .*; write batch_tokens: 16, or more shards$"
    ):
        batches.halve(engine, 4, 40)
    with pytest.raises(
        Problem, match="^tiny: 40 .*; give the job more memory, or write more shards$"
    ):
        batches.halve(engine, 1, 40)


FAULTS = """
import resource, sys, torch
from vecsweep.engine.batches import keep_memory
if sys.argv[1] == "kept":
    keep_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**23).add(1)  # two of 32 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*[faults() for _ in range(15)])
"""


def test_memory_that_tensors_gave_back_is_kept():
    """What follows takes it without asking the system for it page by page."""
    found = {}
    for how in ("kept", "plain"):
        words = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(words, cwd=REPO / "workflow", capture_output=True, text=True)
        found[how] = sum(map(int, done.stdout.split()))
    assert found["kept"] < found["plain"] / 2, found


def test_stages_that_run_a_model_keep_memory(tiny_model, tmp_path, monkeypatch):
    model, calls = tiny_model("gpt2"), []
    monkeypatch.setattr(batches, "keep_memory", lambda: calls.append("kept"))
    task = tiny.write_task(tmp_path, "towns")
    settings = '{"demonstrations": 1, "seed": 0, "max_prompts": null}'
    options = {"model": model.description}
    prompts = tmp_path / "towns.parquet"
    run_stage("prompts", **options, task=task, settings=settings, output=prompts)
    options |= {"readout": model.readout, "prompts": prompts, "batch_tokens": 64}
    run_stage("states", **options, output=tmp_path / "states.safetensors")
    assert calls == ["kept"]
