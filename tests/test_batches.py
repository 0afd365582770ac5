"""What does not fit in memory is tried again in halves."""

import os
import random
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicLayer

import tiny
from conftest import REPO, run_stage
from vecsweep import Problem
from vecsweep.engine import batches, edits, forward, load
from vecsweep.engine.edits import Edit
from vecsweep.tools import plan


def test_in_a_process_of_its_own():
    """In one that has run other tests, what they left free would be room."""
    words = ["-m", "pytest", "-q", "-p", "no:xdist", str(Path(__file__).with_name("limited.py"))]
    # Of options meant for this process, such as one more -q, the line below must not depend.
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, *words], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout


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


def grouped(groups, each, start, longest, seed=0):
    """Groups of prompts that share so many first tokens, and have up to `longest` of their own."""
    draw = random.Random(seed)

    def tokens(count):
        return [draw.randrange(2, tiny.VOCABULARY) for _ in range(count)]

    found = []
    for _ in range(groups):
        shared = tokens(start)
        found.append([shared + tokens(draw.randint(1, longest)) for _ in range(each)])
    return found


def passes(case, engine, groups):
    """Run all prompts: for their states, or with edits of all tokens or of the last one."""
    if case == "states":
        for _ in forward.last_token_batches(engine, groups):
            continue
        return
    size, layers = engine.model.config.hidden_size, range(len(engine.blocks))
    position = "last" if case == "last token" else "all"
    made = [Edit({layer: torch.randn(3, size)}, "add", position) for layer in layers]
    for prompts in groups:
        for clean in edits.clean_runs(engine, prompts, 3, case == "last token"):
            for _ in edits.resume_all(engine, clean, made):
                continue


CASES = ["states", "all tokens", "last token"]


@pytest.mark.parametrize("batch_tokens", [1, 40, 300, 2000])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_keys_and_values_held_in_a_pass_are_bounded(case, batch_tokens, seed, monkeypatch):
    """However many groups, and however long what they share: one run of one prompt goes always."""
    own, held, ran = DynamicLayer.update, [], []

    def update(self, keys, values, *args, **named):
        whole = own(self, keys, values, *args, **named)
        rows = len(keys)
        if rows > 1:  # not even of one prompt's edits
            ran.append(rows * keys.shape[2])
            held.append(rows * whole[0].shape[2])
        return whole

    monkeypatch.setattr(DynamicLayer, "update", update)
    groups = grouped(8, 12, [4, 25, 60][seed], [1, 6, 12][seed], seed)
    passes(case, load.engine_of(tiny.model("gpt2"), batch_tokens), groups)
    assert max(ran, default=0) <= batch_tokens
    # Each row's share is rounded up to whole tokens: the bound is never passed, and is used.
    assert max(held, default=0) <= batches.CACHED * batch_tokens
    if seed and batch_tokens == 300:
        assert max(held) > 0.6 * batches.CACHED * batch_tokens


class Live(TorchDispatchMode):
    """`.peak`: the most bytes that tensors made while it is entered take together."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if torch.is_tensor(tensor) else None
            if storage and storage.nbytes() and storage.data_ptr() not in self.held:
                self.held[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self._gone, storage.data_ptr())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, place):
        self.now -= self.held.pop(place)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_pass_holds_no_more_than_the_plan_says(kind, case, tiny_model):
    stage, batch_tokens = tiny_model(kind), 2000
    settings = tiny.config(kind, stage.folder) | {"batch_tokens": batch_tokens, "shards": 1}
    planned = plan.Facts(kind, settings).activations(batch_tokens, 1)
    groups = grouped(200, 3, 24, 6) if case == "states" else grouped(2, 100, 24, 6)
    engine = load.engine_of(stage.model, batch_tokens)
    with Live() as live:
        passes(case, engine, groups)
    # The plan knows nothing of what attention takes for a moment, much at this width.
    assert 0.05 * planned < live.peak < 1.35 * planned
