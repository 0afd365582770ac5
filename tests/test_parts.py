"""Long stages go on where they were killed, and end with the same bytes."""

import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest
import torch
from transformers import Cache

import faults
import planted
from conftest import HOW, command, main
from test_interventions import SETTINGS, cell
from test_swaps import chain
from vecsweep.engine import parts, plans
from vecsweep.files import read_table, write_table
from vecsweep.finished import folder_of
from vecsweep.layout import ROWS, STAGES
from vecsweep.tasks.rows import kept_rows

KILLS = {"interventions": 10, "selection": 3, "ablations": 3, "swaps": 3}
KILLS |= {"heads": 3, "contenders": 3, "patching": 3, "relational": 3}


@pytest.fixture(scope="module")
def long(tiny_model, tmp_path_factory):
    """long(stage, folder): the words of a long stage on a tiny model, writing to `folder`."""
    model, folder = tiny_model("gpt2"), tmp_path_factory.mktemp("long")
    made = cell(model, folder)
    stages = folder / "stages.parquet"
    rows = kept_rows(made.prompts, ("abstractive",))
    found = {"pattern": "direct", "function_layer": 1, "function_site": "ffn"}
    named = [{key: row[key] for key in ("prompt_set", "prompt_id")} | found for row in rows]
    write_table(pa.Table.from_pylist(named), stages)
    own = {
        "interventions": {"vectors": made.vectors, "first": 0, "last": 2, "settings": SETTINGS},
        "states": {},
        "selection": {"vectors": made.vectors, "settings": SETTINGS},
        "ablations": {"settings": {"max_prompts": 8, "seed": 0, "twins": True}},
        "swaps": {"stages": stages, "settings": {"prompts": 5, "seed": 0}},
        "contenders": {"task": folder / "towns.yaml", "vectors": made.vectors}
        | {
            "settings": SETTINGS
            | {"task": "towns", "task_vectors": True, "function_vectors": False}
        },
    }
    shared = {"model": model.description, "readout": model.readout, "prompts": made.prompts}
    shared |= {"tokenizer": model.tokenizer}
    # The others are of a model that answers.
    planted.save(folder / "weights", "gpt2", "lookup")
    task = planted.write_task(folder / "tasks")
    path = chain(folder / "results", "planted", folder / "weights", task, planted.LAYERS, prompts=2)
    described = folder / "results" / "models" / "planted"
    answering = {"model": described / "model.json", "readout": described / "readout.safetensors"}
    answering |= {"prompts": path("prompts"), "tokenizer": described / "tokenizer.json"}
    own |= {
        "heads": answering | {"task": task, "settings": {"task": task.stem, "seed": 0}},
        "patching": answering | {"stages": path("stages"), "settings": {"prompts": 12, "seed": 0}},
        "relational": answering
        | {"stages": path("stages"), "settings": {"train": 4, "layers": None, "seed": 0}},
    }

    def words(stage, into, name="table.parquet", **changes):
        options = shared | {"batch_tokens": 90} | own[stage] | changes
        options |= dict.fromkeys(("output", "table"), into / name)
        options["vectors" if stage == "heads" else ""] = (into / name).with_suffix(".safetensors")
        known = (*STAGES[stage].inputs, *STAGES[stage].outputs, *HOW, "settings", "task")
        return command(stage, **{name: options[name] for name in options.keys() & {*known}})

    search = folder / "search.parquet"
    assert main(words("interventions", folder, search.name)) == 0
    own["selection"]["search"] = search
    words.answering = answering
    return words


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A part at every chance, of few states."""
    monkeypatch.setattr(parts, "SECONDS", 0)
    monkeypatch.setattr(parts, "SHARE", 1e9)
    monkeypatch.setattr(plans, "DECODED_TOGETHER", 200)


@pytest.mark.parametrize(
    "stage", ["interventions", "states", *sorted({*KILLS} - {"interventions"})]
)
def test_no_tensor_waits_for_the_garbage_collector(long, stage, tmp_path):
    """It comes when it will: until then a pass's keys and values would be held beside the next's."""
    words = long(stage, tmp_path)
    gc.collect()
    gc.disable()
    try:
        assert main(words) == 0
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, (torch.Tensor, Cache))]
        assert not left, sorted({str(thing) for thing in gc.garbage if callable(thing)})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "stage", ["interventions", "selection", "contenders", "heads", "swaps", "patching"]
)
def test_where_there_is_nothing_to_do_one_process_writes(long, stage, tmp_path, monkeypatch):
    """No engine says then which of several it is; two that wrote would remove each other's file."""
    idle = {"first": 1, "last": 1, "settings": SETTINGS | {"start_layers": 2}}  # 0 and 2 of three
    assert main(long("interventions", tmp_path, "empty.parquet", **idle)) == 0
    few = {"prompts": 1, "seed": 0}
    named = SETTINGS | {"task": "towns", "task_vectors": True, "function_vectors": False}
    changes = {
        "interventions": idle,
        "selection": {"search": tmp_path / "empty.parquet"},
        "contenders": {"settings": named | {"dev_prompts": 0}},
        "heads": {"elsewhere": [long.answering["prompts"]]},
        "swaps": {"settings": few},
        "patching": {"settings": few},
    }
    for number in ("1", "0"):
        monkeypatch.setenv("RANK", number)
        assert main(long(stage, tmp_path / number, **changes[stage])) == 0
    assert not [path for path in tmp_path.glob("1/*") if path.is_file()]
    assert len(read_table(tmp_path / "0" / "table.parquet")) == 0
    assert (tmp_path / "0" / "table.safetensors").exists() == (stage == "heads")


def run(words, log, kill_at=None, parts_written=None):
    """Run a command in a process of its own, killed after so many CPU seconds, or parts.

    `.killed`, the CPU `.seconds` that it took; stderr is added to `log`.
    """
    child = os.fork()  # all is imported: a start costs nothing
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            if parts_written:
                write = parts.Parts._write

                def counted(self, *args):
                    path = write(self, *args)
                    if int(path.stem[-6:]) + 1 >= parts_written:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return path

                parts.Parts._write = counted
            code = main([str(word) for word in words])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    process = psutil.Process(child)
    while kill_at is not None and process.status() != psutil.STATUS_ZOMBIE:
        if sum(process.cpu_times()[:2]) >= kill_at:
            process.kill()
            break
        time.sleep(0.002)
    _, status, used = os.wait4(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, log.read_text()
    return SimpleNamespace(killed=os.WIFSIGNALED(status), seconds=used.ru_utime + used.ru_stime)


def results(folder, stem="table"):
    """The bytes of all that a stage wrote, by name; a tensors file's header is in no fixed order."""
    found = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            start = 8 + int.from_bytes(data[:8], "little")
            data = json.loads(data[8:start]), data[start:]
        found[path.name] = data
    return found


@pytest.fixture(scope="module")
def undisturbed(long, tmp_path_factory):
    """undisturbed(stage): its bytes without a kill, and the CPU seconds that they took."""
    found = {}

    def get(stage):
        if stage not in found:
            folder = tmp_path_factory.mktemp(stage)
            seconds = run(long(stage, folder), folder / "log").seconds
            found[stage] = results(folder), seconds
        return found[stage]

    return get


def test_these_are_the_long_stages():
    assert set(KILLS) == {stage.name for stage in ROWS if stage.long}


@pytest.mark.parametrize("stage", KILLS)
def test_killed_at_any_moment(long, undisturbed, tmp_path, stage):
    expected, whole = undisturbed(stage)
    draw, log, kills = random.Random(stage), tmp_path / "log", 0
    while kills < KILLS[stage]:
        words = long(stage, tmp_path)
        killed = run(words, log, draw.uniform(0.1, 0.7) * whole).killed
        kills += killed
        if not killed:  # it was done: the next ones begin anew
            assert results(tmp_path) == expected
            for name in expected:
                (tmp_path / name).unlink()
    run(long(stage, tmp_path), log)
    assert results(tmp_path) == expected and "table.parquet" in expected
    assert {path.name for path in tmp_path.iterdir()} == {"log", *expected}
    what = "a long stage killed (-9), at three random moments (`interventions`: at ten)"
    faults.note(what, "the next try goes on from its finished pieces, and says so", "")


def killed_after(long, stage, folder, count):
    """A stage that was killed when it had written so many parts: where they lie."""
    assert run(long(stage, folder), folder / "log", parts_written=count).killed
    found = sorted(folder_of(folder / "table.parquet").glob("*.safetensors"))
    assert found
    return found


@pytest.mark.parametrize(  # relational: among its Jacobians, and behind them
    "stage, count", [*((stage, 6) for stage in KILLS), ("relational", 130)]
)
def test_what_was_done_is_not_done_again(long, tmp_path, capsys, stage, count, monkeypatch):
    killed_after(long, stage, tmp_path, count)
    passes = []

    def counted(own):
        return lambda *args, **named: passes.append(1) or own(*args, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted(torch.autograd.grad))
    monkeypatch.setattr(
        "vecsweep.engine.edits._resume", counted(plans.resume_all.__globals__["_resume"])
    )
    assert main(long(stage, tmp_path)) == 0
    after = len(passes)
    assert "goes on after" in capsys.readouterr().err
    passes.clear()
    assert main(long(stage, tmp_path, "again.parquet")) == 0
    assert 0 < after < len(passes)


CHANGES = {
    "settings": {"settings": SETTINGS | {"scales": [1.0, 2.0]}},
    "batch_tokens": {"batch_tokens": 91},
}


@pytest.mark.parametrize("change", [*CHANGES, "prompts"])
def test_parts_of_anything_else_are_removed(long, tmp_path, capsys, change):
    found = killed_after(long, "interventions", tmp_path, 4)
    changes = CHANGES.get(change, {})
    if change == "prompts":
        words = long("interventions", tmp_path)
        changes["prompts"] = tmp_path / "prompts.parquet"
        table = read_table(words[words.index("--prompts") + 1])
        write_table(table, changes["prompts"], {"written": "anew"})
    assert main(long("interventions", tmp_path, **changes)) == 0
    lines = capsys.readouterr().err
    assert f"{len(found)} parts of other settings or inputs removed" in lines
    assert "goes on" not in lines and not folder_of(tmp_path / "table.parquet").exists()
    if change == "batch_tokens":
        assert main(long("interventions", tmp_path, "again.parquet", **changes)) == 0
        tables = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("table", "again")]
        assert tables[0] == tables[1]


def truncated(path):
    os.truncate(path, path.stat().st_size - 10)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage, which", [(truncated, 0), (flipped, -1)])
def test_a_damaged_part_is_made_again(long, undisturbed, tmp_path, capsys, damage, which):
    path = killed_after(long, "interventions", tmp_path, 7)[which]
    damage(path)
    assert main(long("interventions", tmp_path)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert len(lines) == 1 and lines[0].startswith(f"{path} is damaged ")
    assert lines[0].endswith("its pieces are made again")
    assert results(tmp_path) == undisturbed("interventions")[0]


@pytest.mark.parametrize("stage", ["interventions", "heads"])  # of one output, and of two
def test_a_task_that_was_finished_in_a_job_that_failed(long, undisturbed, tmp_path, capsys, stage):
    """Before Snakemake tries a job again it removes what all tasks of it wrote."""
    expected = undisturbed(stage)[0]
    first, second = (long(stage, tmp_path, f"{name}.parquet") for name in "ab")
    prompts = tmp_path / "prompts"
    second[second.index("--prompts") + 1] = str(prompts)
    assert main([*first, "--and", *second]) == 1  # there are none yet
    outputs = [tmp_path / name.replace("table", "a") for name in expected]
    made = [path.stat() for path in outputs]
    for path in outputs:
        path.unlink()
    prompts.write_bytes(open(first[first.index("--prompts") + 1], "rb").read())
    capsys.readouterr()
    assert main([*first, "--and", *second]) == 0
    lines = capsys.readouterr().err
    for path, before in zip(outputs, made):
        assert f"{path} was finished before" in lines
        assert path.stat().st_ino == before.st_ino
        assert path.stat().st_mtime >= prompts.stat().st_mtime
    assert [*results(tmp_path, "a").values()] == [*results(tmp_path, "b").values()]
    assert {
        name.replace("a", "table", 1): data for name, data in results(tmp_path, "a").items()
    } == expected
    assert len([*tmp_path.iterdir()]) == 2 * len(expected) + 1
