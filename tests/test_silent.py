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
import pyarrow as pa
import pytest
import torch
import yaml

import faults
import tiny
from test_figures import NAMES, make_database
from vecsweep import Problem, config, invariants
from vecsweep.__main__ import main
from vecsweep.engine import slices
from vecsweep.engine.sources import check_weights, weights_folder
from vecsweep.files import (
    Tensors,
    check_tables,
    read_json,
    read_table,
    write_json,
    write_table,
    write_tensors,
)
from vecsweep.layout import STAGES, SUMMARY, Cell
from vecsweep.stages.prompts import Reader
from vecsweep.stages.summary import text
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
    results = folder / "results"
    return SimpleNamespace(folder=folder, results=results, sweep=sweep, modes=modes(results))


def modes(folder):
    """(modes of all files, modes of all folders) of what a sweep wrote."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    files = {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()}
    return files, {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()}


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
    return file.metadata, {name: (str(file[name].dtype), file[name].tolist()) for name in file}


def parquet(path):
    check_tables([path])  # as the summary does
    return read_table(path)


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

    def settings(path):
        # No job reads them: a note that says something else is written anew, and its job runs again.
        same = read_note(path) == swept.sweep.all_settings()[str(path)]
        return "as it was" if same else "written anew"

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
    said_of = set()
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
                said_of.add(str(problem))
                outcomes[kind] += 1
                continue
        said = capsys.readouterr().err
        if kind == "settings" and found == "written anew":
            continue
        if kind == "parquet":
            same = found.equals(wholes[path])
        elif kind == "description":  # the checksum's own key may have another name
            same = found | wholes[path] == found
        else:
            same = found == wholes[path]
        assert same or str(path) in said, (path, number)
    print({kind: f"{outcomes[kind]} refused" for kind in kinds})
    what = "one byte changed, at random, in any file of a finished sweep"
    sees = "`X is damaged`, or a word about what cannot be read, with the file's name; none passes in silence"
    faults.note(what, sees, " ".join(said_of), "when read")
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
    "summary": (
        "selection/par/towns.parquet",
        "swaps/par/towns.parquet",
        "ovectors/par/towns.parquet",
    ),
}


@pytest.mark.parametrize("stage, file", [(s, file) for s, files in READ.items() for file in files])
def test_a_stage_that_reads_a_flipped_byte_says_its_name(swept, refused, tmp_path, stage, file):
    sweep = swept.sweep
    path = (swept.folder if file.startswith("weights") else swept.results) / file
    if stage == "summary":
        command = summary(sweep, database=tmp_path / "summary.duckdb", tables=tmp_path / "tables")
    else:
        command = sweep.command(STAGES[stage], sweep.cells(STAGES[stage])[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    before = {p: p.read_bytes() for p in swept.results.rglob("*") if p.is_file()}
    with changed(path, data):
        line = refused(command)
    assert str(path) in line and ("damaged" in line or "cannot read" in line)
    assert {p: p.read_bytes() for p in swept.results.rglob("*") if p.is_file()} == before
    assert not list(tmp_path.iterdir())


def figure(database, folder):
    pictures = [word for kind in ("svg", "png") for word in (f"--{kind}", folder / f"a.{kind}")]
    return ["figures", "--settings", '{"name": "patterns"}', "--database", database, *pictures]


def test_a_damaged_database_is_named_by_figures_and_merge(swept, refused, tmp_path):
    whole = swept.results / "summary.duckdb"
    data = bytearray(whole.read_bytes())
    for place in range(4, len(data), 4096):  # in every block
        data[place] ^= 8
    (tmp_path / "flipped.duckdb").write_bytes(data)
    with duckdb.connect(str(tmp_path / "empty.duckdb")):
        pass
    for name in ("flipped", "empty"):
        line = refused(figure(tmp_path / f"{name}.duckdb", tmp_path))
        assert f"{name}.duckdb" in line
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 8
    (tmp_path / "flipped.duckdb").write_bytes(data)
    both = [whole, tmp_path / "flipped.duckdb", "--output", tmp_path / "all.duckdb"]
    assert f"{tmp_path}/flipped.duckdb is damaged" in refused(["merge", *both])
    assert {path.name for path in tmp_path.iterdir()} == {"flipped.duckdb", "empty.duckdb"}


def test_flipped_slices_are_named(tmp_path):
    """Each number of what a process of a sharded model starts from is checked."""
    described = {"model": "m", "revision": None, "sha256": "0", "dtype": "float32"}
    tensors = {name: torch.arange(40.0) for name in ("a", "b")}
    path = slices.file_of(tmp_path, 0)
    write_tensors(tensors, path, slices.notes(described, "zero", 2, 0))
    shapes = {"a": (40,), "b": (40,)}

    def read():
        file = slices.opened(tmp_path, described, "zero", 2, 0)
        return {name: tensor.tolist() for name, tensor in slices.parts(file, shapes)}

    whole = path.read_bytes()
    assert read() == {name: tensor.tolist() for name, tensor in tensors.items()}
    for place in range(len(whole) - 320, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1
        with changed(path, data), pytest.raises(Problem, match=f"{path} is damaged"):
            read()


# (file, change of its rows, what is said of it): each is whole, and not what it should be.
BROKEN = {
    "a prompt less": ("lens/seq/towns/2-2.parquet", lambda t: t.slice(1), "not one row for each"),
    "a prompt twice": (
        "attribution/par/towns.parquet",
        lambda t: pa.concat_tables([t, t.slice(0, 1)]),
        "not one number for each",
    ),
    "wrong at the end": (
        "stages/seq/verbs.parquet",
        lambda t: with_column(t, "pattern", lambda v: "direct", "function_layer", "function_site"),
        "correct prompts are not those whose answer ends at rank 0",
    ),
    "a pattern of none": (
        "stages/par/towns.parquet",
        lambda t: with_column(t, "pattern", lambda v: v, "function_site"),
        "shares are not 1 in all",
    ),
    "another model's": (
        "attribution/par/verbs.parquet",
        lambda t: with_column(t, "model", lambda v: "seq"),
        "rows of another cell",
    ),
    "half a step": ("ablations/par/towns.parquet", lambda t: t.slice(1), "seven steps"),
    "no probability": (
        "lens/par/towns/0-1.parquet",
        lambda t: with_column(t, "answer_probability", lambda v: float("nan")),
        "a rank or probability that can be none",
    ),
}


def with_column(table, name, change, *filled):
    """A table with other values in a column, and something where `filled` columns have none."""
    rows = [row | {name: change(row[name])} for row in table.to_pylist()]
    for row in rows:
        row |= {key: {"function_layer": 2, "function_site": "ffn"}[key] for key in filled}
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize("case", BROKEN)
def test_a_cell_that_breaks_a_rule_is_named_and_not_averaged(swept, refused, tmp_path, case):
    file, change, says = BROKEN[case]
    path = swept.results / file
    whole, table = path.read_bytes(), read_table(path)
    assert table.num_rows
    try:
        write_table(change(table), path)
        paths = {"database": tmp_path / "summary.duckdb", "tables": tmp_path / "tables"}
        line = refused(summary(swept.sweep, **paths))
    finally:
        path.write_bytes(whole)
    assert str(path) in line and says in line, line
    assert not list(tmp_path.iterdir())


# What is wrong -> (stage whose file is named, change of the database, what is said).
WRONG = {
    "tuned: a prompt less": (
        "tuned",
        "DELETE FROM tuned WHERE layer = 3 AND prompt_id = 0",
        "not the same prompts after every layer",
    ),
    "tuned: a layer less": (
        "tuned",
        "DELETE FROM tuned WHERE layer = 3",
        "not the same prompts after every layer",
    ),
    "tuned: endless": (
        "tuned",
        "UPDATE tuned SET kl = 'inf' WHERE layer = 3 AND prompt_id = 0",
        "a number that can be none",
    ),
    "interventions: a prompt less": (
        "interventions",
        "DELETE FROM interventions WHERE method = 'zero' AND start_layer = 3 AND prompt_id = 6",
        "settings with other prompts than the rest",
    ),
    "selection: a place below the last": (
        "selection",
        "UPDATE interventions SET place_after = alternatives + 1"
        " WHERE split = 'test' AND method = 'mean' AND prompt_id = 20",
        "a rank that can be none",
    ),
    "contenders: other prompts": (
        "contenders",
        "INSERT INTO interventions SELECT * REPLACE ('task vector' AS method) FROM interventions"
        " WHERE method = 'mean' AND prompt_id != 20",
        "other prompts than the o-vector's",
    ),
    "heads: one less": (
        "heads",
        "DELETE FROM heads WHERE layer = 3 AND head = 1",
        "not one number for each layer and head",
    ),
    "heads: one twice": (
        "heads",
        "UPDATE heads SET head = 2 WHERE layer = 3 AND head = 1",
        "not one number for each layer and head",
    ),
    "heads: a probability above 1": (
        "heads",
        "UPDATE heads SET effect = 1.5 WHERE layer = 3 AND head = 1",
        "not one number for each layer and head",
    ),
    "selection: a prompt that is not known": (
        "selection",
        "DELETE FROM prompts WHERE prompt_set = 'novel' AND prompt_id = 20",
        "prompts that cannot be judged",
    ),
    "interventions: no top token": (
        "interventions",
        "UPDATE interventions SET top_after = NULL WHERE rank_after > 0 AND prompt_id = 6",
        "shares that are not 1 in all",
    ),
    "ovectors: no length": (
        "ovectors",
        "UPDATE ovectors SET norm = 0 WHERE donor IS NULL AND layer = 7",
        "a length that can be none",
    ),
    "swaps: a pair less": (
        "swaps",
        "DELETE FROM swaps WHERE (prompt_id, other_id, layer, sublayer) = (0, 1, 3, 'ffn')",
        "not every pair at every layer and part",
    ),
    "swaps: one that was not dropped": (
        "swaps",
        "DELETE FROM swaps WHERE (prompt_id, layer, sublayer) = (0, 3, 'ffn') AND other_id IS NULL",
        "not every pair at every layer and part",
    ),
    "swaps: a part less": (
        "swaps",
        "DELETE FROM swaps WHERE (layer, sublayer) = (3, 'ffn')",
        "not every pair at every layer and part",
    ),
    "swaps: a wrong outcome": (
        "swaps",
        "UPDATE swaps SET outcome = 'neither' WHERE own_rank = 0 AND prompt_id = 0",
        "a wrong outcome",
    ),
    "patching: a pair less": (
        "patching",
        "DELETE FROM patching WHERE (prompt_id, layer, sublayer, position) = (0, 3, 'ffn', 'last')",
        "not the same pairs at every layer",
    ),
    "patching: a part less": (
        "patching",
        "DELETE FROM patching WHERE (layer, sublayer, position) = (3, 'ffn', 'last')",
        "not the same pairs at every layer",
    ),
    "patching: endless": (
        "patching",
        "UPDATE patching SET restored = 'nan' WHERE prompt_id = 0 AND layer = 3",
        "not the same pairs at every layer",
    ),
    "relational: a prompt less": (
        "relational",
        "DELETE FROM relational WHERE (method, measure, prompt_id) = ('identity', 'causality', 0)",
        "not the same prompts at every setting",
    ),
    "relational: no success": (
        "relational",
        "UPDATE relational SET success = NOT success WHERE method = 'lre' AND prompt_id = 0",
        "not the same prompts at every setting",
    ),
    "relational: two settings on test": (
        "relational",
        "INSERT INTO relational SELECT * REPLACE (6 AS layer) FROM relational"
        " WHERE method = 'lre' AND split = 'test'",
        "several on test",
    ),
    "models: the last token less": (
        "models",
        "DELETE FROM vocabularies WHERE token_id = 5",
        "not just the tokens that model.json counts",
    ),
    "models: a token with a wrong number": (
        "models",
        "UPDATE vocabularies SET token_id = 60 WHERE token_id = 3",
        "not just the tokens that model.json counts",
    ),
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A database in which every table has rows, and none is wrong."""
    database = make_database(tmp_path_factory.mktemp("made"))
    with duckdb.connect(str(database)) as connection:
        yield connection


@pytest.mark.parametrize("case", WRONG)
def test_a_database_that_breaks_a_rule_names_the_file(made_up, tmp_path, case):
    stage, change, says = WRONG[case]
    grid = {NAMES[0]: [12, 12]}
    invariants.check_rows(made_up, tmp_path, grid)
    made_up.begin()
    try:
        assert made_up.execute(change).fetchone()[0]  # the number of rows
        with pytest.raises(Problem, match=f"{tmp_path}/{stage}/{NAMES[0]}.*{says}"):
            invariants.check_rows(made_up, tmp_path, grid)
    finally:
        made_up.rollback()


@contextmanager
def small_disk(folder, size):
    """A disk of so many bytes; skips where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def grow(folder):
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


# Of what the database takes: its log does not fit, or what it is closed with.
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_summary_on_a_full_disk_leaves_nothing_and_then_works(swept, refused, tmp_path, share):
    whole = (swept.results / "summary.duckdb").stat().st_size
    with small_disk(tmp_path / "disk", int(whole * share)) as disk:
        command = summary(swept.sweep, database=disk / "summary.duckdb", tables=disk / "tables")
        if main(command) == 0:  # what DuckDB needs besides differs
            assert share > 0.9
        else:
            line = refused(command)
            assert f"cannot write {disk}/summary.duckdb" in line, line
            assert not list(disk.iterdir())
            sees = (
                "`cannot write X`; no database is left, nor half a table: make room and run again"
            )
            faults.note("disk full in the summary", sees, line, "when written")
            grow(disk)
            assert main(command) == 0
        assert database_content(disk / "summary.duckdb") == database_content(
            swept.results / "summary.duckdb"
        )
        for path in (swept.results / "tables").iterdir():
            assert (disk / "tables" / path.name).read_bytes() == path.read_bytes()


def test_folders_with_an_apostrophe(swept, tmp_path):
    """SQL takes it for the end of the name."""
    folder = tmp_path / "o'brien é x"
    folder.mkdir()
    command = summary(swept.sweep, database=folder / "summary.duckdb", tables=folder / "tables")
    assert main(command) == 0
    path = swept.results / "tables" / "findings.csv"
    assert (folder / "tables" / path.name).read_bytes() == path.read_bytes()
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT {text(folder)}").fetchone() == (str(folder),)


NUMBERS = list(range(200_000))
WRITERS = {
    "a.json": lambda path: write_json({"numbers": NUMBERS}, path),
    "a.parquet": lambda path: write_table(pa.table({"numbers": NUMBERS}), path),
    "a.safetensors": lambda path: write_tensors({"numbers": torch.tensor(NUMBERS)}, path),
}


@pytest.mark.parametrize("name", [*WRITERS, "a.svg", "merged.duckdb"])
def test_writers_on_a_full_disk_leave_nothing(swept, refused, tmp_path, name):
    database = swept.results / "summary.duckdb"
    with small_disk(tmp_path / "disk", 8192) as disk:
        path = disk / name
        if name in WRITERS:
            with pytest.raises(Problem, match=f"cannot write {path}: .*No space left on device"):
                WRITERS[name](path)
        elif name == "a.svg":
            line = refused(figure(database, disk))
            assert "cannot write" in line and "No space left on device" in line
        else:
            (tmp_path / "b.duckdb").write_bytes(database.read_bytes())
            line = refused(["merge", database, tmp_path / "b.duckdb", "--output", path])
            assert "No space left" in line or "cannot write" in line
        assert not list(disk.iterdir())
        grow(disk)
        if name in WRITERS:
            WRITERS[name](path)
            assert [p.name for p in disk.iterdir()] == [name]


def test_files_are_as_private_as_the_umask_says(swept, tmp_path):
    assert swept.modes == ({0o664}, {0o775})
    before = os.umask(0o077)
    try:
        for name, write in WRITERS.items():
            write(tmp_path / "results" / name)
        command = summary(
            swept.sweep,
            database=tmp_path / "results" / "summary.duckdb",
            tables=tmp_path / "results" / "tables",
        )
        assert main(command) == 0
    finally:
        os.umask(before)
    assert modes(tmp_path / "results") == ({0o600}, {0o700})


def test_prune_leaves_what_is_not_its_own(swept, capsys):
    results = swept.results
    lens = results / "lens" / "par" / "towns" / "0-1.parquet"
    own = [
        "lens/mine/notes/0-1.parquet",  # named as a result, and of no sweep
        "lens/mine/plan.txt",
        "lens/par/notes.txt",  # beside what goes
        "lens/seq/towns/0-9.copy.parquet",
        "states/copies/towns.safetensors",
        "models/mine/model.json",
    ]
    for name in own:
        path = results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lens.read_bytes())
    # Parts of what goes, of a result that is there, and of one that is being made.
    parts = {
        name: results / f"interventions/{name}/.0-{last}.parquet.parts"
        for name, last in (("par/towns", 1), ("seq/towns", 1), ("seq/verbs", 77))
    }
    for folder in parts.values():
        folder.mkdir(parents=True)
        (folder / "0-0-000000.safetensors").write_bytes(b"some")
    (results / "stages" / "par" / "empty").mkdir()
    (results / "ovectors" / "par" / "linked").symlink_to(swept.folder / "tasks")
    grid = yaml.safe_load((swept.folder / "run.yaml").read_text())
    del grid["models"]["par"]
    (swept.folder / "less.yaml").write_text(yaml.safe_dump(grid))
    command = ["prune", "--configfile", str(swept.folder / "less.yaml"), "--results", str(results)]
    assert main([*command, "--yes"]) == 0
    assert "mine" not in capsys.readouterr().out
    left = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    of_par = {name for name in left if "/par" in name}
    assert [name for name, folder in parts.items() if folder.exists()] == ["seq/verbs"]
    assert set(own) <= left and of_par == {"lens/par/notes.txt"}
    assert (results / "stages" / "par" / "empty").is_dir()
    assert list((results / "ovectors" / "par" / "linked").iterdir())
    assert main([*command, "--yes"]) == 0
    assert "holds only what" in capsys.readouterr().out
