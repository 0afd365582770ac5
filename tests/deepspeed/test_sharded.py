"""Two real processes on gloo: the same numbers as one process, and clear ends when something breaks."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import duckdb
import processes
import psutil
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import faults
import planted
import tiny
import warm
from conftest import REPO, command, describe, main
from vecsweep import Problem
from vecsweep.engine import signs, slices
from vecsweep.engine.families import tensor_parallel
from vecsweep.engine.sources import checksums
from vecsweep.files import Tensors, read_json, read_table, write_json, write_table, write_tensors
from vecsweep.tools import plan

SHARDS = 2
# In several batches; the last prompt is longer than the others, all begin alike.
PROMPTS = [[9, 8, 7, 6, 5, last, 4] for last in (10, 11, 12)] + [[9, 8, 7, 6, 5, 4, 44, 45]]
SLIM = "slim"  # a BLOOM whose embedding is small
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def engines_of(kind):
    """The ways in which a tiny model can be sharded."""
    return ["tensor", "zero"] if tensor_parallel(tiny.CONFIGS[kind][0]) else ["zero"]


CASES = [(kind, engine) for kind in tiny.KINDS for engine in engines_of(kind)]
# Families that are like others: one that can be split, experts one by one in the files, and scales.
ALIKE = [("gemma2", "tensor"), ("mixtral", "zero"), ("gpt_oss", "zero"), ("granite", "zero")]
# Other ways to the same numbers: slices written before, weights kept in host memory.
WAYS = [
    (kind, f"{engine} ready") for kind in ("gpt2", "bloom", "llama") for engine in engines_of(kind)
]
WAYS += [("gpt2", "zero offload"), ("llama", "zero offload")]


def described(folder, kind, **options):
    """Save a tiny model in several files and describe it."""
    tiny.save(kind, folder / "source", bos=kind in ("opt", "gemma3_text"), **options)
    stage = describe(kind, folder / "source", folder / "described")
    assert main(stage.arguments) == 0
    return stage


def save_slim(folder):
    """Eight times as many parameters in the blocks as in the embedding."""
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 64, "n_layer": 6, "n_head": 4}
    config = transformers.AutoConfig.for_model("bloom", **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder / "source")
    tiny.tokenizer().save_pretrained(folder / "source")
    stage = describe("bloom", folder / "source", folder / "described", SLIM, layers=6)
    assert main(stage.arguments) == 0
    return stage


LACKING = "h.1.mlp.dense_4h_to_h.weight"
# Checkpoints that do not fit their config: name -> what is done to a file's tensors.
BROKEN = {
    "lacking": lambda tensors: tensors.pop(f"transformer.{LACKING}"),
    "unused": lambda tensors: tensors.update({f"transformer.{LACKING}_scale": torch.ones(3)}),
    "misshapen": lambda tensors: tensors.update({f"transformer.{LACKING}": torch.ones(32, 126)}),
}


def note_checksums(path, folder):
    """As if the weights had been so when stage models saw them."""
    write_json(read_json(path) | {"weights_crc32": checksums(Path(folder))}, path)


def change_tensors(folder, change):
    """Change the tensors of the file that holds LACKING, and the index with it."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = content["weight_map"][f"transformer.{LACKING}"]
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})
    others = {key: name for key, name in content["weight_map"].items() if name != file}
    content["weight_map"] = others | dict.fromkeys(tensors, file)
    index.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory):
    """What two processes found for all cases in one run, `.found[name, engine, process]`; the models."""
    folder = tmp_path_factory.mktemp("sharded")
    kinds = [*tiny.KINDS, *dict(ALIKE)]
    stages = {kind: described(folder / kind, kind, shard_size="20KB") for kind in kinds}
    stages[SLIM] = save_slim(folder / SLIM)
    for name, change in BROKEN.items():
        stages[name] = described(folder / name, "bloom", shard_size="20KB")
        change_tensors(stages[name].folder, change)
        note_checksums(stages[name].description, stages[name].folder)
    extra = [SLIM, *BROKEN]
    cases = [
        *CASES,
        *ALIKE,
        *WAYS,
        *((name, engine) for name in extra for engine in ("tensor", "zero")),
    ]
    output = folder / "found"
    output.mkdir()
    plan = {
        "models": [(name, engine, str(stages[name].description)) for name, engine in cases],
        "compute": kinds,
        "prompts": PROMPTS,
        "shards": SHARDS,
        "output": str(output),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(SHARDS), processes.__file__, str(folder / "plan.json")]
    done = subprocess.run(torchrun, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.fail(done.stderr[-4000:])
    found = {
        (name, engine, process): torch.load(output / f"{name}-{engine}-{process}.pt")
        for name, engine in cases
        for process in range(SHARDS)
    }
    made = {"stages": stages, "found": found, "output": output}
    return SimpleNamespace(**made, single={}, log=done.stderr)


def single(run, kind):
    """What one process finds, computed once a model."""
    if kind not in run.single:
        engine = processes.load_described(run.stages[kind].description, 1, "auto")
        run.single[kind] = processes.compute(engine, PROMPTS)
    return run.single[kind]


def off(found, expected):
    """The largest difference, relative to the largest entry."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("kind, engine", CASES + ALIKE)
def test_every_process_finds_what_one_process_does(sharded_run, kind, engine):
    files = list((sharded_run.stages[kind].folder).glob("*.safetensors"))
    assert len(files) >= 3
    expected = single(sharded_run, kind)
    for process in range(SHARDS):
        found = dict(sharded_run.found[kind, engine, process])
        held = found.pop("bytes")
        found.pop("held")
        assert found.keys() == expected.keys()
        # Experts have no parts by neuron.
        known = [name for name in expected if expected[name] is not None]
        assert [name for name in found if found[name] is not None] == known
        worst = max((off(found[name], expected[name]), name) for name in known)
        assert worst[0] <= 1e-4, worst
        whole = 4 * json.loads(sharded_run.stages[kind].description.read_text())["parameters"]
        assert 0.5 * whole <= held < whole


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_is_compared_differs_among_itself(sharded_run, kind):
    # Or an edit that is never applied would pass for one that agrees.
    found = {k: v.flatten() for k, v in single(sharded_run, kind).items() if ", prompts" in k}
    assert len(found) > 20
    for a, b in ((a, b) for a in found for b in found if a < b and len(found[a]) == len(found[b])):
        assert off(found[a], found[b]) > 1e-3, (a, b)


@pytest.mark.parametrize("kind, engine", CASES)
def test_neurons_sum_to_the_update_of_the_ffn(sharded_run, kind, engine):
    found = sharded_run.found[kind, engine, 1]
    for layer in range(tiny.layers_of(kind)):
        # The first prompt's row of the states.
        update = found[f"ffn_out.{layer:02d}"][0]
        assert len(found[f"parts.{layer}"]) >= 48
        assert off(found[f"parts.{layer}"].sum(0) + found[f"constant.{layer}"], update) <= 1e-4
        # They are no invention of the constant, which is the bias alone: the same for all prompts.
        name = f"constant.{layer}"
        assert off(found[name], single(sharded_run, kind)[name]) < 1e-4


@pytest.mark.parametrize("engine", ["tensor", "zero"])
def test_a_process_holds_a_share(sharded_run, engine):
    whole = 4 * json.loads(sharded_run.stages[SLIM].description.read_text())["parameters"]
    held = [sharded_run.found[SLIM, engine, process]["bytes"].item() for process in range(SHARDS)]
    assert max(held) < 0.75 * whole and sum(held) >= whole
    assert f"engine: {engine}, shards: {SHARDS}" in sharded_run.log


@pytest.mark.parametrize("engine", ["tensor", "zero"])
@pytest.mark.parametrize("name", BROKEN)
def test_every_parameter_is_filled_and_every_key_consumed(sharded_run, name, engine):
    for process in range(SHARDS):
        problem = sharded_run.found[name, engine, process]["problem"]
        assert LACKING in problem and "\n" not in problem
        assert str(sharded_run.stages[name].folder) in problem


@pytest.mark.parametrize("name", BROKEN)
def test_so_in_one_process(sharded_run, name):
    with pytest.raises(Problem, match=LACKING):
        processes.load_described(sharded_run.stages[name].description, 1, "auto")


@pytest.mark.parametrize("kind, engine", CASES)
def test_plan_knows_what_a_process_holds(sharded_run, kind, engine):
    settings = tiny.config(kind, sharded_run.stages[kind].folder)
    planned = plan.Facts(kind, settings).held(engine, SHARDS)
    for process in range(SHARDS):
        assert sharded_run.found[kind, engine, process]["bytes"].item() == planned


def flattened(found):
    return found.pop("held") | found


@pytest.mark.parametrize("kind, way", WAYS)
def test_every_way_is_the_same(sharded_run, kind, way):
    """Parameters, states and edited runs, bit for bit."""
    for process in range(SHARDS):
        plain, other = (
            flattened(dict(sharded_run.found[kind, engine, process]))
            for engine in (way.split()[0], way)
        )
        assert plain.keys() == other.keys() and len(plain) > 60
        assert not [name for name in plain if not torch.equal(plain[name], other[name])]


@pytest.mark.parametrize("engine, shards", [("single", 1), ("single", 2), ("tensor", 2)])
def test_only_zero_offloads(bloom, tmp_path, refused, engine, shards):
    arguments = states(bloom, tmp_path, shards=shards, engine=engine)[3:]
    last = refused([*arguments, "--offload"])
    assert last.endswith(f"engine: {engine} cannot offload; write engine: zero or auto")


def test_offload_on_one_device(bloom, tmp_path):
    """The states of one process; weights outside the device need no second one."""
    for name, options in {"plain": [], "offload": ["--offload"]}.items():
        (tmp_path / name).mkdir()
        arguments = states(bloom, tmp_path / name, shards=1)[3:]
        assert main([*map(str, arguments), *options]) == 0
    one, two = (
        Tensors(tmp_path / name / "results" / "states.safetensors") for name in ("plain", "offload")
    )
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


# Slices written before, and what may be wrong with them


def noted(**changes):
    """A change of a slice's file: other notes."""

    def change(path):
        write_tensors(load_file(path), path, Tensors(path).metadata | changes)

    return change


SPOILT = {
    "missing": (Path.unlink, "no such file"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 100), "damaged"),
    "shards": (noted(shards="4"), "is for shards: 4, not 2"),
    "engine": (noted(engine="zero"), "is for engine: zero, not tensor"),
    "slice": (noted(slice="0"), "is for slice: 0, not 1"),
    "dtype": (noted(dtype="float16"), "is for dtype: float16, not float32"),
    "checkpoint": (noted(checkpoint="0" * 64), f"is for checkpoint: {'0' * 64}, not "),
    "format": (noted(format="0"), "is for format: 0, not 1"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_slices_that_do_not_fit(sharded_run, tmp_path, refused, name):
    change, reason = SPOILT[name]
    folder = tmp_path / "slices"
    shutil.copytree(sharded_run.output / "bloom-tensor ready", folder)
    change(folder / "slice-1.safetensors")
    arguments = states(sharded_run.stages["bloom"], tmp_path, prompts="none")[3:]
    line = refused([*arguments, "--slices", folder])
    assert f"{folder}/slice-1.safetensors is " in line and reason in line
    assert line.endswith(f"delete {folder} and run again")
    assert not list((tmp_path / "results").iterdir())


def test_slices_of_another_model(sharded_run):
    path = sharded_run.output / "bloom-tensor ready" / "slice-0.safetensors"
    held = {name: tuple(p.shape) for name, p in load_file(path).items()}
    file = Tensors(path)
    assert dict(slices.parts(file, held)).keys() == held.keys()
    for shapes in (held | {"more": (1,)}, held | {"lm_head.weight": (1, 2)}):
        with pytest.raises(Problem, match="the model differ in '(more|lm_head.weight)'"):
            next(slices.parts(file, shapes))


def test_preshard_needs_shards(bloom, tmp_path, refused):
    arguments = command("preshard", model=bloom.description, batch_tokens=1, output=tmp_path / "no")
    assert "write shards: 2 or more" in refused(arguments)


# What breaks, through our own launcher.


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    """A tiny BLOOM in several files, with so many prompts that a run takes a while."""
    folder = tmp_path_factory.mktemp("bloom")
    stage = described(folder, "bloom", shard_size="20KB")
    stage.prompts = folder / "towns.parquet"
    task = tiny.write_task(folder / "tasks", "towns")
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": None})
    arguments = {"model": stage.description, "task": task, "settings": settings}
    assert main(command("prompts", **arguments, output=stage.prompts)) == 0
    return stage


def states(stage, folder, shards=SHARDS, engine="auto", prompts=None):
    """The command of a sharded stage that writes into `folder`/results."""
    inputs = {"model": stage.description, "readout": stage.readout}
    inputs["prompts"] = prompts or stage.prompts
    options = {"batch_tokens": 1, "shards": shards, "engine": engine}
    output = folder / "results" / "states.safetensors"
    output.parent.mkdir()
    arguments = command("states", **inputs, **options, output=output)
    return [sys.executable, "-m", "vecsweep", *arguments]


def segments():
    """Names in /dev/shm that no living process has mapped."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped += maps.read_text()
        except OSError:  # the process has ended
            continue
    return {name for name in names if f"/dev/shm/{name}" not in mapped}


def second(children):
    """The process of rank 1: helpers that a rank starts have its rank too, and may be gone by now."""
    ranks = []
    for child in children:
        with suppress(psutil.Error):
            rank, above = child.environ().get("RANK"), child.parent().environ().get("RANK")
            if rank == "1" and above is None:
                ranks.append(child)
    (process,) = ranks
    return process


def assert_fails(arguments, folder, when):
    """Run a command that must leave nothing, and end within a minute of its fault; its last line.

    `when(line, children)` sees every line of stderr as it comes, with the processes started, and
    tells when the fault is there: a slow machine takes minutes to start them.
    """
    before, temporary = segments(), folder / "tmp"
    temporary.mkdir()
    environment = ENVIRONMENT | {"TMPDIR": str(temporary)}
    # Threads and processes that outlive the command show in its process group.
    run = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    since, children, lines = None, set(), []
    for line in run.stderr:
        children |= set(psutil.Process(run.pid).children(recursive=True))
        lines.append(line.rstrip())
        if since is None and when(line, children):
            since = time.monotonic()
    assert run.wait(60) == 1
    assert since and time.monotonic() - since < 60
    assert children and not [child for child in children if child.is_running()]
    assert segments() <= before
    assert not list(temporary.iterdir())
    assert not list((folder / "results").iterdir())
    lines = [line for line in lines if line]
    assert sum(line.startswith("vecsweep ") for line in lines) == 1, lines
    return lines[-1]


def test_a_killed_process_ends_the_job(bloom, tmp_path):
    many = tmp_path / "many.parquet"
    write_table(pa.concat_tables([read_table(bloom.prompts)] * 40), many)

    killed = []

    def kill(line, children):
        if "the processes hold" not in line:
            return False
        second(children).kill()
        killed.append(time.monotonic())
        return True

    last = assert_fails(states(bloom, tmp_path, prompts=many), tmp_path, kill)
    sees = "process 1 was killed by signal 9; the others were stopped"
    assert last == f"vecsweep states: {sees}"
    seconds = time.monotonic() - killed[0]
    faults.note("a process of a sharded model killed (-9)", f"`{sees}`; tried again", last, seconds)


def test_a_stopped_process_is_named_with_all_stacks(bloom, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "VECSWEEP_HANG_SECONDS", "5")
    many = tmp_path / "many.parquet"
    write_table(pa.concat_tables([read_table(bloom.prompts)] * 40), many)
    stopped, lines = [], []

    def stop(line, children):
        if "the processes hold" in line:
            process = second(children)
            sign = Path(process.environ()[signs.FOLDER]) / f"1.{process.pid}"
            while "engine/forward.py" not in sign.read_text():  # still loading, or proving
                time.sleep(0.05)
            process.suspend()
            stopped.append(time.monotonic())
        lines.append(line)
        return line.startswith("vecsweep states")

    last = assert_fails(states(bloom, tmp_path, prompts=many), tmp_path, stop)
    assert time.monotonic() - stopped[0] < 30
    assert last.startswith("vecsweep states: process 1 hangs at ")
    assert "no progress for 5 s; the stacks of all are above" in last
    # The first waits in a forward; the second was stopped wherever in the stage it was.
    for rank, place in enumerate(["engine/forward.py", "stages/states.py"]):
        mine = "".join(line for line in lines if f"role{rank}]:" in line)
        stacks = mine.split("most recent call first")[1:]
        assert any(place in stack and "engine/launch.py" in stack for stack in stacks)


def changed(stage, folder, change):
    """A copy of a model's folder and description, the folder changed."""
    for name in ("source", "described"):
        shutil.copytree(stage.folder.parent / name, folder / name)
    change(folder / "source")
    copy = {"description": folder / "described" / "model.json", "readout": stage.readout}
    return SimpleNamespace(**copy, prompts=stage.prompts)


def broken(line, children):
    """A process has found the tensor that is wrong; before the command's own last line."""
    return LACKING in line and not line.startswith("vecsweep ")


def test_a_process_that_fails_has_the_last_word(bloom, tmp_path):
    stage = changed(bloom, tmp_path, lambda folder: change_tensors(folder, BROKEN["lacking"]))
    note_checksums(stage.description, tmp_path / "source")
    last = assert_fails(states(stage, tmp_path), tmp_path, broken)
    place = f"{tmp_path}/source: the checkpoint has no tensor for 'transformer.{LACKING}'"
    cure = "fetch the model again"
    assert last in [f"vecsweep states: process {i} failed: {place}; {cure}" for i in range(SHARDS)]


def test_no_slices_of_a_broken_checkpoint(bloom, tmp_path):
    stage = changed(bloom, tmp_path, lambda folder: change_tensors(folder, BROKEN["unused"]))
    note_checksums(stage.description, tmp_path / "source")
    output = tmp_path / "results" / "slices"
    output.parent.mkdir()
    options = {"model": stage.description, "batch_tokens": 1, "shards": SHARDS, "output": output}
    preshard = [sys.executable, "-m", "vecsweep", *command("preshard", **options)]
    last = assert_fails(preshard, tmp_path, broken)
    assert f"tensors were not used, the first 'transformer.{LACKING}" in last


SECOND = "model-00002-of-00010.safetensors"


def truncate(folder):
    with open(folder / SECOND, "r+b") as content:
        content.truncate((folder / SECOND).stat().st_size - 1000)


@pytest.mark.parametrize(
    "change, reason",
    [(lambda folder: (folder / SECOND).unlink(), "no such file"), (truncate, "metadata")],
)
@pytest.mark.parametrize("shards", [1, SHARDS])
def test_a_missing_or_truncated_file(bloom, tmp_path, refused, change, reason, shards):
    stage = changed(bloom, tmp_path, change)
    line = refused(states(stage, tmp_path, shards=shards)[3:])
    assert f"{tmp_path}/source/{SECOND} is missing or damaged" in line and reason in line
    assert not list((tmp_path / "results").iterdir())


SEES = """
import os, sys

def saw(event, args):
    if event == "ctypes.dlsym" and args[1] == "mallopt":
        print(f"memory is kept in process {os.getpid()}", file=sys.stderr)

sys.addaudithook(saw)
"""


@pytest.mark.parametrize("shards", [1, SHARDS])
def test_memory_is_kept_in_single_processes_alone(bloom, tmp_path, shards):
    """Where parameters are gathered for each pass, pieces of ever other sizes would pile up."""
    (tmp_path / "sees").mkdir()
    (tmp_path / "sees" / "sitecustomize.py").write_text(SEES)
    path = os.pathsep.join([str(tmp_path / "sees"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [str(word) for word in states(bloom, tmp_path, shards=shards)],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"shards: {shards}" in done.stderr, done.stderr
    assert done.stderr.count("memory is kept") == (shards == 1), done.stderr


def test_shards_that_do_not_divide_the_heads(bloom, tmp_path, refused):
    last = refused(states(bloom, tmp_path, shards=3, engine="tensor")[3:])
    assert "shards: 3 does not divide the model's 4 attention heads" in last
    assert last.endswith("choose from 2, 4, or engine: zero")


# Through Snakemake, on a model that does solve its task.


def snakemake(folder, config, *goals):
    """Run Snakemake in a folder until some results are there."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["snakemake", *goals, "--cores", "2"]
    words += ["--snakefile", REPO / "Snakefile", "--directory", folder]
    words += ["--configfile", folder / "config.yaml"]
    done = subprocess.run(
        list(map(str, words)),
        env=warm.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.fail(done.stdout[-4000:])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A results folder with one planted BLOOM under two names, in one process and in two."""
    folder = tmp_path_factory.mktemp("sweep")
    planted.save(folder / "weights", "bloom")
    model = {"source": "local", "path": "weights", "layers": planted.LAYERS, "dtype": "float32"}
    config = {
        "models": {"one": model | {"shards": 1}, "two": model | {"shards": SHARDS}},
        "tasks": {"towns": {"file": str(planted.write_task(folder / "tasks"))}},
        "ovectors": {"per_layer": 2},
        "interventions": {"dev_prompts": 4, "test_prompts": 4},
        "ablations": {"max_prompts": 6},
        "swaps": {"prompts": 6},
        "summary": {"resamples": 100},
    }
    snakemake(folder, config, "results/summary.duckdb")
    return SimpleNamespace(folder=folder, config=config)


def test_the_states_of_two_processes(sweep):
    folder = sweep.folder / "results" / "states"
    one, two = (Tensors(folder / name / "towns.safetensors") for name in ("one", "two"))
    assert set(one) == set(two) and len(set(one)) == 3 * planted.LAYERS + 1
    assert max(off(two[name], one[name]) for name in one) <= 1e-4
    log = (sweep.folder / "logs/states/two/towns.log").read_text()
    assert "engine: tensor, shards: 2" in log and "the processes hold" in log


def assert_tops(db):
    """Top tokens: the same probabilities, and the same tokens but where two are equally likely."""
    query = """SELECT model, (task, prompt_set, prompt_id, layer, site) AS state,
                      list(token_id ORDER BY position), list(probability ORDER BY position)
               FROM top_tokens GROUP BY ALL ORDER BY ALL"""
    found = {}
    for model, state, tokens, likely in db.execute(query).fetchall():
        found.setdefault(str(state), {})[model] = tokens, likely
    assert len(found) > 100
    for state in found.values():
        (ones, likely), (twos, also) = state["one"], state["two"]
        assert also == pytest.approx(likely, abs=1e-5)
        at = dict(zip(twos, also))
        for token, probability in zip(ones, likely):
            # A token that the other has not is as likely as its last one.
            assert at.get(token, also[-1]) == pytest.approx(probability, abs=1e-5)


# Of stages that this sweep's config leaves out.
OFF = ("heads", "function_heads", "patching", "relational", "tuned", "checkpoints")


def test_the_tables_of_two_processes(sweep):
    """All but floating-point numbers equal, those within 1e-4; and o-vectors do something."""
    with duckdb.connect(str(sweep.folder / "results" / "summary.duckdb"), read_only=True) as db:
        columns = {}
        query = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
        for table, column, kind in db.execute(query).fetchall():
            columns.setdefault(table, {})[column] = kind in ("FLOAT", "DOUBLE")
        compared = [table for table in columns if "model" in columns[table]]
        expected = {"lens", "top_tokens", "interventions", "effects", "ablations", "swaps"}
        assert expected | {"attribution"} <= set(compared)
        # The planted model has words that are equally likely: which comes first is rounding.
        compared.remove("top_tokens")
        assert_tops(db)
        for table in compared:
            # How it ran may differ: table runs has the shards.
            names = [
                name
                for name in columns[table]
                if name not in ("model", "series", "shards", "engine")
            ]
            floats = [name for name in names if columns[table][name]]
            exact = [name for name in names if name not in floats]
            listed = ", ".join(f'"{name}"' for name in [*exact, *floats])
            rows = f"SELECT {listed} FROM {table} WHERE model = ? ORDER BY ALL"
            one, two = (db.execute(rows, [name]).fetchall() for name in ("one", "two"))
            assert one or table.startswith(OFF), table
            assert [row[: len(exact)] for row in one] == [row[: len(exact)] for row in two]
            for a, b in zip(one, two):
                assert b[len(exact) :] == pytest.approx(a[len(exact) :], abs=1e-4), table
        shards = set(db.execute("SELECT model, shards FROM runs").fetchall())
        assert shards >= {("one", 1), ("two", 2)}
        moved = "SELECT count(*) FROM interventions WHERE rank_before != rank_after"
        assert db.execute(moved).fetchone()[0] > 50


def test_jobs_that_start_from_slices_and_take_two_tasks(sweep):
    """The same states and tables, bit for bit, from one load for both tasks."""
    options = {"preshard": True, "tasks_per_job": 2}
    ready = sweep.config["models"]["two"] | options
    task = sweep.config["tasks"]["towns"]
    config = sweep.config | {"models": {"ready": ready}, "tasks": {"towns": task, "again": task}}
    results, logs = sweep.folder / "results", sweep.folder / "logs"
    goals = [f"results/{stage}/ready/towns.parquet" for stage in ("selection", "ablations")]
    snakemake(sweep.folder, config, *goals)
    files = {path.name for path in (results / "preshard" / "ready").glob("*.safetensors")}
    assert files == {f"slice-{i}.safetensors" for i in range(SHARDS)}
    for stage in ("states", "interventions", "selection", "ablations"):
        assert {path.stem for path in (results / stage / "ready").iterdir()} == {"again", "towns"}
        (log,) = (logs / stage / "ready").rglob("*.log")
        assert log.read_text().count("engine: tensor, shards: 2") == SHARDS
    two, one = (Tensors(results / "states" / n / "towns.safetensors") for n in ("two", "ready"))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    blocks = f"interventions/{{}}/towns/0-{planted.LAYERS - 1}"
    for path in (blocks, "selection/{}/towns", "ablations/{}/towns"):
        two, one = (
            read_table(results / f"{path.format(name)}.parquet").drop_columns("model")
            for name in ("two", "ready")
        )
        assert one.equals(two) and len(one), path
