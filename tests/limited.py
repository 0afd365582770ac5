"""What test_batches runs in a process of its own, whose memory is limited: that is the device."""

import os
import resource
import sys
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch

import faults
import tiny
from vecsweep import Problem
from vecsweep.engine import decoding, edits, forward, jacobian, load
from vecsweep.engine.batches import keep_memory
from vecsweep.engine.edits import Edit
from vecsweep.engine.products import fast_bytes
from vecsweep.engine.readout import Readout

MB = 2**20
keep_memory()  # as the stages do
# Of one length behind a shared beginning, and so many that a pass takes a hundred megabytes.
PROMPTS = [[5, 6, 7, 8, 9, 10, a, b, a, b] for a in range(2, 52) for b in range(2, 42)]


def in_child(compute, folder, room):
    """(what `compute()` gives, its stderr) in a process that may take `room` MB more, None: any."""
    path, log = folder / f"{room}.pt", folder / f"{room}.log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            if room:
                taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf(
                    "SC_PAGE_SIZE"
                )
                resource.setrlimit(resource.RLIMIT_AS, (taken + room * MB,) * 2)
            found = compute()
            resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
            torch.save(found, path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, log.read_text()
    return torch.load(path), log.read_text()


def states(kind, engine):
    return forward.last_token_states(engine, [PROMPTS])


def edited(kind, engine, last_only=False):
    """Clean runs and edits: several in a pass, one of many variants, removals."""
    generator = torch.Generator().manual_seed(0)
    many = [
        Edit({1: torch.randn(count, 32, generator=generator)}, mode, "last" if last_only else "all")
        for count, mode in ((2, "replace"), (150, "add"), (2, "add"), (1, "replace"))
    ]
    found = {}
    for clean in edits.clean_runs(engine, PROMPTS[:60], 1, last_only):
        for i, state in enumerate(edits.resume_all(engine, clean, many)):
            for row, one in zip(clean.rows, state.unbind(1)):
                found[f"{i} {row}"] = one
            assert len(clean.rows) == state.shape[1]
    return dict(sorted(found.items()))


def rows_of_jacobians(kind, engine):
    """Sums over prompts: the room is for their forward, and a few rows at a time."""
    found = {}
    for clean in list(edits.clean_runs(engine, PROMPTS[:600], 1, 2)):
        for name, sums in zip(("J", "Js"), jacobian.jacobians(engine, clean, [0, 1])):
            for layer, values in enumerate(sums):
                for half, some in enumerate(values.split(16)):
                    found[f"{name} {layer} {half}"] = some / len(clean.rows)
    return found | {"prompts": torch.tensor(len(clean.rows))}


CASES = {"states": states, "edits": edited, "last token": partial(edited, last_only=True)}
CASES["jacobians"] = rows_of_jacobians
ROOM = {"states": 32, "edits": 24, "last token": 24, "jacobians": 72}


@pytest.mark.parametrize(
    "case, kind",
    [("states", "gpt2"), ("edits", "bloom"), ("edits", "gemma3_text"), ("last token", "gpt2")]
    + [("jacobians", "gpt2")],
)
def test_halved_until_it_fits(case, kind, tmp_path):
    model = tiny.model(kind)

    def compute():
        engine = load.engine_of(model, 10**6, kind)
        return CASES[case](kind, engine) | {"batch_tokens": torch.tensor(engine.batch_tokens)}

    whole, quiet = in_child(compute, tmp_path, None)
    found, said = in_child(compute, tmp_path, ROOM[case])
    assert not quiet
    before, after = (some.pop("batch_tokens").item() for some in (whole, found))
    assert before == 10**6 and after < 20_000
    lines = said.splitlines()
    assert all(line.startswith(f"{kind}: ") for line in lines), said
    assert f"goes on with {after}; batch_tokens: {after} in the config spares" in lines[-1]
    assert whole.keys() == found.keys() and len(whole) > 8
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
    sees = "`X N tokens at a time do not fit in memory; goes on with N; batch_tokens: N in the config spares the "
    sees += "attempt`"
    faults.note(
        "a batch does not fit in memory", sees, said, "at once", "equal to 1e-5: batches differ"
    )


@pytest.mark.parametrize("case", ["states", "edits"])
def test_a_shared_beginning_that_does_not_fit_is_said(case, tmp_path):
    model, start = tiny.model("llama"), [5, 6] * 30_000
    prompts = [[*start, 7], [*start, 8]]

    def compute():
        engine = load.engine_of(model, 10**6, "tiny")
        try:
            if case == "states":
                forward.last_token_states(engine, [prompts])
            else:
                next(edits.clean_runs(engine, prompts, 1))
        except Problem as problem:
            return {"said": str(problem)}

    found, said = in_child(compute, tmp_path, 32)
    assert not said
    assert found["said"] == (
        "tiny: 60000 tokens at a time do not fit in memory, and cannot be cut; "
        "give the job more memory, or write shards: 2"
    )


@pytest.mark.parametrize(
    "kind, count, room", [("bfloat16", 6000, 20), ("float32", 80_000, 26), ("bytes", 40_000, 30)]
)
def test_decoding_is_halved(kind, count, room, tmp_path, monkeypatch):
    # Whatever this processor is, but for bytes.
    monkeypatch.setattr(decoding, "fast_bytes", lambda: kind == "bytes" and fast_bytes())
    monkeypatch.setattr(decoding, "fast_bfloat16", lambda: kind != "float32")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5000, 32, generator=generator)
    readout = Readout("rms", 1e-6, torch.ones(32), None, weight, None)
    drawn = torch.randn(count, 32, generator=generator)
    if kind == "bytes":  # is for states that are alike
        drawn = 1 + 0.03 * drawn
    targets = [torch.arange(count)[:, None] % 5000]
    decoding.decode(readout, drawn[:80], [targets[0][:80]], 3)  # compiles

    def compute():
        return vars(decoding.decode(readout, drawn, targets, 3, torch.arange(5), unit=500))

    whole, quiet = in_child(compute, tmp_path, None)
    found, said = in_child(compute, tmp_path, room)
    assert not quiet and "does not fit in memory; goes on with half as many" in said
    assert all(torch.equal(found[name], whole[name]) for name in whole)
