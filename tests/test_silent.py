"""Nothing is wrong in silence: flipped bytes, full disks, broken cells, private files, prune.

The everyday run flips 100 bytes; VECSWEEP_FLIPS=1000 more of them.
"""

import os
import random
import stat
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import duckdb
import pytest
import yaml

import tiny
from vecsweep import Problem, config
from vecsweep.__main__ import main
from vecsweep.engine import slices
from vecsweep.engine.sources import check_weights, weights_folder
from vecsweep.files import Tensors, check_tables, read_json, read_table, write_json, write_table
from vecsweep.files import write_tensors
from vecsweep.layout import FIGURES, ROWS, STAGES, SUMMARY, Cell
from vecsweep.stages.prompts import Reader
from vecsweep.sweep import Sweep, note, read_note

FLIPS = int(os.environ.get("VECSWEEP_FLIPS", 100))
TASKS = ("towns", "verbs")


def made(folder, models, umask):
    """A finished sweep of tiny models, by the stages' own commands: all in one process."""
    before = os.umask(umask)
    try:
        for name in TASKS:
            tiny.write_task(folder / "tasks", name)
        grid = {
            "models": {
                name: tiny.config(kind, folder / "weights" / kind, layers_per_job=2)
                for name, kind in models.items()
            },
            "tasks": {name: {"file": str(folder / "tasks" / f"{name}.yaml")} for name in TASKS},
            "prompts": {"max_prompts": 4},
            "summary": {"resamples": 100},
            "ovectors": {"per_layer": 1, "donors": "any"},
            "interventions": {"tasks": ["towns"], "dev_prompts": 1, "test_prompts": 1},
            "ablations": {"tasks": ["towns"], "max_prompts": 1},
            "swaps": {"tasks": ["towns"]},
        }
        for kind in models.values():
            tiny.save(kind, folder / "weights" / kind)
        (folder / "run.yaml").write_text(yaml.safe_dump(grid))
        sweep = Sweep(config.checked(grid), folder / "results")
        (folder / "results").mkdir()
        note(sweep.all_settings())
        for stage, cell in sweep.jobs():
            assert main(sweep.command(stage, cell)) == 0, (stage.name, cell)
        assert main(summary(sweep)) == 0
    finally:
        os.umask(before)
    return SimpleNamespace(folder=folder, results=folder / "results", sweep=sweep)


def summary(sweep, **paths):
    """The arguments of stage summary on a sweep's results."""
    paths = {"results": sweep.results} | sweep.outputs(SUMMARY, Cell()) | paths
    words = ["summary", "--settings", sweep.settings_file(SUMMARY, Cell())]
    return words + [str(word) for name in paths for word in (f"--{name}", paths[name])]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return made(tmp_path_factory.mktemp("silent"), {"seq": "llama", "par": "gptj"}, 0o002)


@contextmanager
def changed(path, content):
    """A file with another content for a while."""
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        yield
    finally:
        path.write_bytes(whole)


def database_content(path):
    """All rows of all tables, as numbers that tell them apart, and all views."""
    with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
        rows = [
            connection.execute(f"SELECT count(*), sum(hash(t)) FROM {name} AS t").fetchall()
            for (name,) in tables
        ]
        query = "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY 1"
        return tables, rows, connection.execute(query).fetchall()


def tensors_in(file):
    notes = {key: note for key, note in getattr(file, "metadata", {}).items()}
    return notes, {name: (str(file[name].dtype), file[name].tolist()) for name in file}


def parquet(path):
    check_tables([path])  # as the summary does
    return read_table(path)


def settings(path):
    # One that cannot be read is written anew, and its job runs again.
    return read_note(path) or "written anew"


def readers(swept):
    """(paths, reader) of each kind of file: what vecsweep itself reads, the way it reads it."""
    results = swept.results

    def weights(path):
        name = "seq" if "llama" in str(path) else "par"
        model = results / "models" / name / "model.json"
        description = read_json(model)
        check_weights(description, weights_folder(description, model))
        return path.read_bytes()

    def tokenizer(path):
        Reader.of(path.with_name("model.json"), path)
        return path.read_bytes()

    def database(path):
        try:
            return database_content(path)
        except duckdb.Error as error:  # which stage figures and merge say, with the file's name
            assert "Corrupt" in str(error)
            raise Problem(f"{path}: {error}") from error

    folders = [path.parent for path in results.glob("models/*/model.json")]
    loaded = [p for kind in ("llama", "gptj") for p in (swept.folder / "weights" / kind).iterdir()]
    return {
        "parquet": (sorted(results.rglob("*.parquet")), parquet),
        "tensors": (
            sorted(results.rglob("*.safetensors")),
            lambda path: tensors_in(Tensors(path)),
        ),
        "description": ([folder / "model.json" for folder in folders], read_json),
        "settings": (sorted((results / "settings").rglob("*.json")), settings),
        "tokenizer": ([folder / "tokenizer.json" for folder in folders], tokenizer),
        "weights": (
            [p for p in sorted(loaded) if p.name in ("config.json", "model.safetensors")],
            weights,
        ),
        "database": ([results / "summary.duckdb"], database),
    }


def test_flipped_bytes_change_no_table_in_silence(swept, capsys):
    kinds, generator = readers(swept), random.Random(0)
    wholes = {}
    outcomes = dict.fromkeys(kinds, 0)
    for number in range(FLIPS):
        kind = [*kinds][number % len(kinds)]
        paths, reader = kinds[kind]
        path = generator.choice(paths)
        data = bytearray(path.read_bytes())
        if path not in wholes:
            wholes[path] = reader(path)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        capsys.readouterr()
        with changed(path, data):
            try:
                found = reader(path)
            except Problem as problem:
                assert str(path) in str(problem) and len(str(problem).splitlines()) == 1
                outcomes[kind] += 1
                continue
        said = capsys.readouterr().err
        if kind == "settings" and found == "written anew":
            continue
        same = found.equals(wholes[path]) if kind == "parquet" else found == wholes[path]
        assert same or str(path) in said, (path, number)
    print({kind: f"{outcomes[kind]} refused" for kind in kinds})
    for kind in ("parquet", "tensors", "tokenizer", "weights", "database"):
        assert outcomes[kind] > 0.9 * (FLIPS // len(kinds)), kind


# Stage that is run -> a file that it reads, of the sweep's first model.
READ = {
    "prompts": ("models/seq/model.json", "models/seq/tokenizer.json"),
    "states": ("prompts/seq/towns.parquet", "weights/llama/model.safetensors"),
    "lens": ("states/seq/towns.safetensors", "models/seq/readout.safetensors"),
    "stages": ("lens/seq/towns/2-2.parquet",),
    "ovectors": ("stages/seq/towns.parquet",),
    "selection": ("ovectors/seq/towns.safetensors", "interventions/seq/towns/0-1.parquet"),
    "summary": ("selection/par/towns.parquet", "swaps/par/towns.parquet", "ovectors/par/towns.parquet"),
    "figures": ("summary.duckdb",),
}


@pytest.mark.parametrize("stage, file", [(s, file) for s, files in READ.items() for file in files])
def test_a_stage_that_reads_a_flipped_byte_says_its_name(swept, refused, tmp_path, stage, file):
    sweep = swept.sweep
    path = (swept.folder if file.startswith("weights") else swept.results) / file
    cells = sweep.cells(STAGES[stage]) if stage != "figures" else []
    if stage == "summary":
        command = summary(sweep, database=tmp_path / "summary.duckdb", tables=tmp_path / "tables")
    elif stage == "figures":
        pictures = [word for kind in ("svg", "png") for word in (f"--{kind}", tmp_path / f"a.{kind}")]
        command = ["figures", "--settings", '{"name": "patterns"}', "--database", path, *pictures]
    else:
        command = sweep.command(STAGES[stage], cells[0])
    data = bytearray(path.read_bytes())
    places = range(len(data)) if stage == "figures" else [len(data) // 2]
    for place in places[:: max(1, len(places) // 3)] if stage == "figures" else places:
        data[place] ^= 8
    before = {p: p.read_bytes() for p in swept.results.rglob("*") if p.is_file()}
    with changed(path, data):
        line = refused(command)
    assert str(path) in line and "damaged" in line
    assert {p: p.read_bytes() for p in swept.results.rglob("*") if p.is_file()} == before
    assert not list(tmp_path.iterdir())
