"""The made-up results of `vecsweep.tools.scale`: the summary is right on them, in little memory."""

import resource
import subprocess
import sys
import time
from collections import defaultdict

import duckdb
import pytest

from conftest import main
from vecsweep.files import read_table
from vecsweep.tools import scale

SIZE = scale.Size(models=2, tasks=2, layers=9, layers_per_job=4, prompts=20, novel=8, vocabulary=40)
MEMORY = 200


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "results"
    scale.make(SIZE.sweep(folder), SIZE)
    return folder


@pytest.fixture(scope="module")
def query(results):
    assert main(scale.summary(SIZE.sweep(results), MEMORY)) == 0
    with duckdb.connect(str(results / "summary.duckdb"), read_only=True) as database:
        yield lambda sql: database.execute(sql).fetchall()


def rows(results, stage):
    for path in sorted((results / stage).rglob("*.parquet")):
        yield from read_table(path).to_pylist()


def mean(values):
    return pytest.approx(sum(values) / len(values), rel=1e-6)


def test_lens_rows_and_curves(results, query):
    found, tops, last = defaultdict(dict), 0, {}
    for row in rows(results, "lens"):
        tops += len(row["top_token"])
        if row["site"] == "resid_post":
            cell = row["model"], row["task"], row["prompt_set"]
            for target in ("argument", "answer"):
                key = (*cell, target, row["layer"])
                found[key][row["prompt_id"]] = 1 / (1 + row[f"{target}_rank"])
            if row["layer"] == SIZE.layers - 1:
                last[*cell, row["prompt_id"]] = row["answer_rank"] == 0
    cells = SIZE.models * SIZE.tasks * 2 * SIZE.prompts * SIZE.layers * 2
    assert query("SELECT count(*) FROM lens") == [(2 * cells,)]
    assert query("SELECT count(*) FROM top_tokens") == [(tops,)] and tops == 5 * cells
    assert query("SELECT count(DISTINCT (model, task)), sum(1) FROM stages") == [(4, len(last))]
    key = "model, task, prompt_set, target, layer"
    curves = query(f"SELECT {key}, subset, prompts, reciprocal_rank FROM curves")
    assert len(curves) == 2 * len(found)  # both subsets
    assert 0 < sum(last.values()) < len(last)
    for *key, subset, prompts, reciprocal_rank in curves:
        values = [
            value
            for prompt, value in found[tuple(key)].items()
            if subset == "all" or last[*key[:3], prompt]
        ]
        assert prompts == len(values) and reciprocal_rank == mean(values)


def test_effects(results, query):
    found = defaultdict(lambda: defaultdict(list))
    for row in rows(results, "selection"):
        key = row["model"], row["ovector_task"], row["method"], row["start_layer"]
        found[key][row["prompt_id"]].append(1 / (1 + row["answer_rank_after"]))
    key = "model, ovector_task, method, start_layer"
    effects = query(f"SELECT {key}, prompts, reciprocal_rank_after FROM effects")
    assert sorted(row[:4] for row in effects) == sorted(found)
    for *key, units, reciprocal_rank in effects:
        values = [sum(repeats) / len(repeats) for repeats in found[tuple(key)].values()]
        assert units == len(values) == SIZE.novel // 2 and reciprocal_rank == mean(values)


def test_too_little_memory_is_said_in_one_line(results, query, tmp_path, refused):
    command = scale.summary(SIZE.sweep(results), memory=4)
    command[command.index("--database") + 1] = str(tmp_path / "summary.duckdb")
    line = refused(command)
    assert "--set-resources summary:mem_mb=8" in line
    assert not list(tmp_path.iterdir())


# 0: nothing at all, the first write; larger ones fail while tables are added.
@pytest.mark.parametrize("limit", [0, 2**14, 2**20])
def test_full_disk_is_said_in_one_line(results, query, tmp_path, limit):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    command = scale.summary(SIZE.sweep(results), MEMORY)
    command[command.index("--database") + 1] = str(tmp_path / "summary.duckdb")
    done = subprocess.run(
        [sys.executable, "-m", "vecsweep", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vecsweep summary: cannot write {tmp_path / 'summary.duckdb'}: ")
    assert not list(tmp_path.iterdir())


def test_a_killed_summary_leaves_nothing_for_long(results, query, tmp_path):
    command = scale.summary(SIZE.sweep(results), MEMORY)
    command[command.index("--database") + 1] = str(tmp_path / "summary.duckdb")
    process = subprocess.Popen([sys.executable, "-m", "vecsweep", *command])
    while not (left := [*tmp_path.glob(".*/*")]) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert left and not (tmp_path / "summary.duckdb").exists()
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["summary.duckdb"]


def test_refuses_a_folder_that_is_there(tmp_path, capsys):
    (tmp_path / "kept").write_text("")
    assert main(["scale", str(tmp_path)]) == 1
    line = f"vecsweep scale: {tmp_path} is there already; name a new folder\n"
    assert capsys.readouterr().err == line
    assert (tmp_path / "kept").exists()
