"""What a shared machine or cluster asks for: several kinds of nodes, no network, several users."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas  # noqa: F401  pyarrow imports it when it needs it first: as another user, it fails
import pyarrow as pa
import pytest
import torch
import yaml

import tiny
from conftest import REPO, command
from vecsweep import Problem, files, resources, slurm, sweep
from vecsweep.__main__ import fetches, main
from vecsweep.layout import STAGES
from vecsweep.tools import width

EXAMPLE = REPO / "workflow" / "profiles" / "slurm" / "site.example.yaml"
MODEL = {"layers": 12, "dtype": "bfloat16", "offload": False, "source": "local", "path": "none"}
MODELS = {"small": MODEL | {"shards": 1}, "large": MODEL | {"shards": 8}}


def site(folder, **changes):
    """The site file of a folder, as read."""
    content = yaml.safe_load(EXAMPLE.read_text()) | changes
    (folder / "site.yaml").write_text(yaml.safe_dump(content))
    return resources.read_site(folder)


def asked(requests, stage, model):
    """The resources of a first try."""
    found = requests.of(STAGES[stage])
    wildcards = SimpleNamespace(model=model)
    found = {k: v(wildcards, 1) if callable(v) else v for k, v in found.items()}
    return {key: value for key, value in found.items() if value is not None}


def test_a_models_own_nodes(tmp_path):
    other = {"gpu_partition": "h100", "gpu_model": "h100", "gpus_per_node": 8, "max_hours": 48}
    found = site(tmp_path, gpu_partition="a40", models={"large": other}, slurm_extra="--qos=long")
    requests = resources.Requests(MODELS, found)
    small, large = (asked(requests, "states", model) for model in MODELS)
    names = ("slurm_partition", "gres", "nodes", "slurm_extra")
    assert [small[name] for name in names] == ["a40", "gpu:1", 1, "--qos=long"]
    assert [large[name] for name in names] == ["h100", "gpu:h100:8", 1, "--qos=long"]
    assert "mpi" not in large
    without = resources.Requests(MODELS, found | {"models": {}})
    assert asked(without, "states", "large")["nodes"] == 2  # of four GPUs each
    # One model on CPUs alone, beside others on GPUs.
    cpus = resources.Requests(MODELS, found | {"models": {"small": {"gpus_per_node": 0}}})
    assert not {"gres", "gpus", "nodes"} & asked(cpus, "states", "small").keys()
    assert "gres" in asked(cpus, "states", "large") and "gres" not in asked(cpus, "lens", "large")


def test_a_site_file_without_the_newer_keys(tmp_path):
    content = yaml.safe_load(EXAMPLE.read_text())
    del content["models"], content["slurm_extra"], content["container"]
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    assert resources.read_site(tmp_path) == site(tmp_path)


def test_a_site_without_gpus(tmp_path):
    """A process has the cores that the site names, and the time that they need."""
    models = {"large": MODEL | {"layers": 48, "shards": 2}}
    requests = [
        resources.Requests(models, site(tmp_path, gpus_per_node=each, cpus_per_gpu=8, max_hours=99))
        for each in (4, 0)
    ]
    on_gpus, on_cpus = (asked(each, "states", "large") for each in requests)
    assert "gres" not in on_cpus and on_cpus["cpus_per_task"] == 16
    assert on_cpus["runtime"] > on_gpus["runtime"]
    long = [asked(each, "interventions", "large")["runtime"] for each in requests]
    assert long[1] > 3 * long[0]
    stage = STAGES["states"]
    assert [each.threads(stage, "large") for each in requests] == [1, 8]
    assert [each.threads(STAGES["lens"], "large") for each in requests] == [1, 1]
    # What loads for long beside what it computes takes many tasks, and each adds its time.
    many = [each.together(stage, "large") for each in requests]
    assert many[0] > many[1] >= 1
    wildcards = SimpleNamespace(model="large")
    one, three = (requests[1].of(stage, "large", n)["runtime"](wildcards, 1) for n in (1, 3))
    assert three == 3 * one
    # A site file without that number, which no GPU needed.
    without = resources.Requests(MODELS, site(tmp_path, gpus_per_node=0, cpus_per_gpu=None))
    assert asked(without, "states", "small")["cpus_per_task"] == 1


def test_a_finished_models_broken_folder_stops_nothing(tmp_path):
    tiny.save("llama", tmp_path / "weights")
    (tmp_path / "weights" / "config.json").write_text("{")
    broken = tiny.config("llama", tmp_path / "weights") | {"shards": 1, "offload": False}
    requests = resources.Requests({"m": broken}, site(tmp_path))
    assert requests.small_gpus() == [] and requests.planned_memory("m") is None
    assert asked(requests, "states", "m")["mem_mb"] > 0


@pytest.mark.parametrize(
    "partition, lines, most",
    [
        ("", "a*|64000+|2:00:00|(null)\nb|9000|1:00:00|(null)", (64000, 120)),
        ("a,b", "a|64000|infinite|(null)\nb|9000|1:00:00|(null)", (64000, 0)),
        ("a,b", "a|64000|2-00:00:00|(null)\nb|90000|1:00:00|(null)", (90000, 2880)),
        ("c", "", (0, 0)),
    ],
)
def test_the_most_of_several_partitions(monkeypatch, partition, lines, most):
    """One without a limit takes a job of any length."""
    monkeypatch.setattr(slurm, "said", lambda *command: lines)
    assert slurm.largest(partition, "") == {"mem_mb": most[0], "runtime": most[1]}


@pytest.mark.parametrize("each", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 6, 8, 12])
def test_shards_that_do_not_spread_evenly_are_refused_before_any_job(tmp_path, shards, each):
    """A node asks for as many GPUs as the others, and for no fewer than it starts processes."""
    models, found = {"m": MODEL | {"shards": shards}}, site(tmp_path, gpus_per_node=each)
    nodes, requests = -(-shards // each), resources.Requests(models, found)
    if shards % nodes:
        with pytest.raises(Problem, match=f"models > m: {shards} shards do not spread evenly over"):
            requests.check_spread()
        return
    requests.check_spread()
    wanted = asked(requests, "states", "m")
    assert int(wanted["gres"].split(":")[-1]) * wanted["nodes"] == shards == wanted["gpus"]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"models": ["a"]}, "models: ['a'] has no keys"),
        ({"models": {"a": 3}}, "models > a: 3 has no keys"),
        ({"models": {"a": {"partition": "x"}}}, "models > a: unknown key 'partition'"),
        ({"models": {"a": {"gpus_per_node": "4"}}}, "models > a, gpus_per_node: '4' is no number"),
        ({"slurm_extra": 3}, "slurm_extra: 3 is no name"),
        ({"slurm_extras": None}, "unknown: slurm_extras (did you mean 'slurm_extra'?)"),
        ({"models": {"smal": {}}}, "'smal' is no model of the config (did you mean 'small'?)"),
    ],
)
def test_mistakes_in_a_site_file(tmp_path, changes, says):
    with pytest.raises(Problem) as error:
        resources.Requests(MODELS, site(tmp_path, **changes))
    assert says in str(error.value)


# A process that runs a command of vecsweep and then reaches for the hub.
REACH = """
import sys
from vecsweep.__main__ import main
main(sys.argv[1:])
import huggingface_hub
huggingface_hub.snapshot_download("owner/tiny", revision="0" * 40)
"""


def test_a_job_that_would_reach_out_says_so_at_once(tmp_path):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = command("stages", lens=[tmp_path / "none.parquet"], output=tmp_path / "out.parquet")
    done = subprocess.run(
        [sys.executable, "-c", REACH, *words],
        env=environment | {"PYTHONPATH": str(REPO / "workflow")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "outgoing traffic has been disabled" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_only_a_model_from_the_hub_may_reach_it(stage):
    for source in ("hub", "local", "package"):
        args = SimpleNamespace(command=stage, settings={"source": source})
        assert fetches(args) == (stage == "models" and source == "hub")


def test_dag_counts_the_jobs_of_a_made_up_sweep(tmp_path, capsys):
    size = {"models": 1, "tasks": 11, "layers": 4, "layers-per-job": 2, "tasks-per-job": 1}
    words = [word for key, value in size.items() for word in (f"--{key}", str(value))]
    assert main(["dag", str(tmp_path / "dag"), *words]) == 0
    title, empty, full = capsys.readouterr().out.splitlines()
    # The model; 12 jobs a task, lens and interventions in two blocks; summary, figures, page, all.
    assert title == "1 models x 11 tasks x 2 blocks"
    assert int(empty.split()[3]) >= 1 + 12 * 11 + 4
    assert "results there: 0 jobs" in full and not [*tmp_path.iterdir()]


def test_width_extrapolates_by_the_layer():
    few = dict.fromkeys(width.STEPS, (3.0, 5e9))
    many = dict.fromkeys(width.STEPS, (4.0, 7e9))
    for row in width.rows(few, many, [1, 2]):
        assert row[1:] == (2, 1, 72, 3, 2, 143)


def measure_width(vocabulary):
    words = ["--part", 28, "--vocabulary", vocabulary, "--shards", 2, "--engine", "tensor"]
    words = [sys.executable, "-m", "vecsweep", "width", *words, "--layers", 1, "--prompts", 2]
    return subprocess.run([*map(str, words)], capture_output=True, text=True)


def test_width_of_two_processes():
    done = measure_width(60000)
    assert done.returncode == 0, done.stderr
    assert "2 processes of 1 threads, engine tensor; layers: 1" in done.stdout
    assert all(f"\n| {step} | " in done.stdout for step in width.STEPS)


def test_width_of_what_cannot_be_shared():
    done = measure_width(width.VOCABULARY)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("vecsweep width: a process holds the whole model")
    assert done.stderr.count("\n") == 1


@contextmanager
def user(uid, gid, umask=0o002):
    """Files are read and written as by another user."""
    before = os.umask(umask)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.umask(before)


@pytest.fixture
def shared():
    """A results folder of a group, which others may not enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    os.chown(folder, 0, 7777)
    folder.chmod(0o2770)
    groups = os.getgroups()
    os.setgroups([])
    yield folder
    os.setgroups(groups)
    shutil.rmtree(folder)


# Name -> (how it is written, how it is read).
KINDS = {
    "a.json": (lambda p: files.write_json({"a": 1}, p), files.read_json),
    "a.parquet": (lambda p: files.write_table(pa.table({"a": [1]}), p), files.read_table),
    "a.safetensors": (
        lambda p: files.write_tensors({"a": torch.ones(2)}, p),
        lambda p: files.Tensors(p)["a"],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_results_folder_of_a_group(shared, name):
    write, read = KINDS[name]
    path = shared / "stage" / "model" / name
    with user(1111, 7777):
        write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664 and path.stat().st_uid == 1111
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2775 and folder.stat().st_gid == 7777
    with user(2222, 7777):  # another of the group goes on
        read(path)
        write(path)
    assert path.stat().st_uid == 2222 and path.stat().st_gid == 7777
    with user(3333, 3333):  # a stranger is told in one line
        with pytest.raises(Problem, match="Permission denied; ask its owner") as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(Problem, match=r"cannot write .*: Permission denied"):
            write(path)


def test_a_careful_users_umask_is_kept(shared):
    with user(1111, 7777, umask=0o077):
        files.write_json({"a": 1}, shared / "private.json")
    assert stat.S_IMODE((shared / "private.json").stat().st_mode) == 0o600


def test_settings_of_another_user_are_noted_anew(shared):
    note = {str(shared / "settings" / "a.json"): {"a": 1}}
    with user(1111, 7777):
        sweep.note(note)
    with user(2222, 7777):
        assert sweep.note(note) == {}  # they say the same
        before = sweep.note({path: {"a": 2} for path in note})
        sweep.restore(before)
        assert [sweep.read_note(path) for path in note] == [{"a": 1}]
