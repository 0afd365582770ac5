"""Tool merge: two small summaries made by hand become one, or are refused with nothing left."""

import json

import duckdb
import pytest

from vecsweep.__main__ import main
from vecsweep.tools import scale

TABLES = """
CREATE TABLE models (model VARCHAR, layers BIGINT, revision {revision}, sha256 VARCHAR);
CREATE TABLE tasks (task VARCHAR, title VARCHAR, kind VARCHAR, injected BOOLEAN{place});
CREATE TABLE prompts (model VARCHAR, task VARCHAR, prompt_id INTEGER, answer_tokens INTEGER[]);
CREATE TABLE lens (model VARCHAR, task VARCHAR, prompt_id INTEGER, layer SMALLINT, rank INTEGER,
                   probability FLOAT);
CREATE TABLE interventions (model VARCHAR, task VARCHAR, ovector_task VARCHAR, rank INTEGER);
CREATE TABLE runs (stage VARCHAR, model VARCHAR, task VARCHAR, layers VARCHAR,
                   step_version INTEGER, vecsweep VARCHAR, host VARCHAR);
CREATE TABLE paper (quantity VARCHAR, value DOUBLE);
INSERT INTO paper VALUES ('depth', 0.5), ('depth', 0.5);
CREATE MACRO half(p) AS p / 2;
CREATE VIEW means AS SELECT model, task, half(avg(rank)) AS rank FROM lens GROUP BY ALL;
CREATE VIEW best AS SELECT model, min(rank) AS rank FROM means GROUP BY ALL;
COMMENT ON TABLE lens IS 'every layer''s rank';
COMMENT ON COLUMN lens.rank IS 'from 0';
COMMENT ON VIEW means IS 'half the mean';
COMMENT ON COLUMN means.rank IS 'halved';
COMMENT ON MACRO half IS 'of it';
"""
# Model and task of each cell: model m with task towns is in both.
CELLS = {
    "a": [("m", "towns"), ("m", "verbs")],
    "b": [("m", "towns"), ("n", "towns"), ("n", "birds")],
}
PLACES = {"a": ["verbs", "towns"], "b": ["birds", "towns"]}


@pytest.fixture
def databases(tmp_path):
    """Write a.duckdb and b.duckdb; `change` is SQL for b, `place` adds that column to tasks."""

    def make(change="", place=False):
        for name, cells in CELLS.items():
            with duckdb.connect(str(tmp_path / f"{name}.duckdb")) as connection:
                # Models of local folders have no revision, and its column then has no type.
                revision = {"a": '"NULL"', "b": "VARCHAR"}[name]
                connection.execute(
                    TABLES.format(revision=revision, place=", place INTEGER" * place)
                )
                for model in sorted({model for model, _ in cells}):
                    revision = "NULL" if model == "m" else "'main'"
                    connection.execute(
                        f"INSERT INTO models VALUES ('{model}', 2, {revision}, 'sum of {model}')"
                    )
                    connection.execute(
                        f"INSERT INTO runs VALUES ('models', '{model}', NULL, NULL, 1, '0.1.0', "
                        f"'host {name}')"
                    )
                for number, task in enumerate(PLACES[name]):
                    also = f", {number}" * place
                    injected = task == "birds" or (name, task) == ("b", "towns")
                    connection.execute(
                        f"INSERT INTO tasks VALUES ('{task}', upper('{task}'), 'k', "
                        f"{injected}{also})"
                    )
                for model, task in cells:
                    cell = f"'{model}', '{task}'"
                    connection.execute(
                        f"""INSERT INTO prompts SELECT {cell}, range, [range, 7] FROM range(3);
                        INSERT INTO lens SELECT {cell}, i.range, l.range, i.range + l.range, 0.5
                        FROM range(3) AS i, range(2) AS l;
                        INSERT INTO interventions VALUES ({cell}, '{task}', 1);
                        INSERT INTO runs VALUES
                        ('lens', {cell}, '0-1', 2, '0.1.0', 'host {name}')"""
                    )
                # Each sweep has vectors of its own on prompts of a task that both have.
                other = {"a": "verbs", "b": "birds"}[name]
                connection.execute(f"INSERT INTO interventions VALUES ('m', 'towns', '{other}', 3)")
                if name == "b":
                    connection.execute(change)
        return [str(tmp_path / "a.duckdb"), str(tmp_path / "b.duckdb")]

    return make


def merge(paths, tmp_path):
    """The merged database, opened."""
    output = tmp_path / "new" / "c.duckdb"
    assert not main(["merge", *paths, "--output", str(output)])
    assert [path.name for path in output.parent.iterdir()] == ["c.duckdb"]
    return duckdb.connect(str(output), read_only=True)


def test_merged_is_whole(databases, tmp_path):
    with merge(databases(), tmp_path) as merged:
        cells = sorted({*CELLS["a"], *CELLS["b"]})
        count = "SELECT model, task, count(*) FROM {} GROUP BY ALL ORDER BY ALL"
        assert merged.sql(count.format("lens")).fetchall() == [(*cell, 6) for cell in cells]
        assert merged.sql(count.format("prompts")).fetchall() == [(*cell, 3) for cell in cells]
        assert merged.sql("FROM models ORDER BY model").fetchall() == [
            ("m", 2, None, "sum of m"),
            ("n", 2, "main", "sum of n"),
        ]
        assert merged.sql("FROM tasks").fetchall() == [
            ("verbs", "VERBS", "k", False),
            ("towns", "TOWNS", "k", True),
            ("birds", "BIRDS", "k", True),
        ]
        assert merged.sql("FROM paper").fetchall() == [("depth", 0.5)] * 2
        vectors = merged.sql("SELECT ovector_task FROM interventions WHERE rank = 3 ORDER BY 1")
        assert vectors.fetchall() == [("birds",), ("verbs",)]
        hosts = merged.sql("SELECT stage, host FROM runs WHERE model = 'm' ORDER BY ALL")
        assert hosts.fetchall() == [("lens", "host a")] * 2 + [("models", "host a")]
        assert merged.sql("SELECT count(*) FROM runs").fetchall() == [(6,)]


def test_merged_has_views_macros_comments(databases, tmp_path):
    with merge(databases(), tmp_path) as merged:
        assert merged.sql("FROM best ORDER BY model").fetchall() == [("m", 0.75), ("n", 0.75)]
        assert merged.sql("SELECT half(3)").fetchall() == [(1.5,)]
        comments = merged.sql(
            """SELECT comment FROM duckdb_tables() UNION ALL SELECT comment FROM duckdb_columns()
               UNION ALL SELECT comment FROM duckdb_views()
               UNION ALL SELECT comment FROM duckdb_functions() WHERE function_name = 'half'"""
        )
        found = sorted(comment for (comment,) in comments.fetchall() if comment)
        assert found == ["every layer's rank", "from 0", "half the mean", "halved", "of it"]


def test_places_are_the_first_databases_then_the_others(databases, tmp_path):
    with merge(databases(place=True), tmp_path) as merged:
        found = merged.sql("SELECT task, place FROM tasks ORDER BY place").fetchall()
        assert found == [("verbs", 0), ("towns", 1), ("birds", 2)]


def test_order_of_databases_and_three(databases, tmp_path):
    a, b = databases()
    with merge([b, a], tmp_path) as merged:
        tasks = merged.sql("SELECT task FROM tasks").fetchall()
        assert tasks == [("birds",), ("towns",), ("verbs",)]
        assert merged.sql("SELECT count(*) FROM lens").fetchall() == [(24,)]
    output = tmp_path / "new" / "d.duckdb"
    whole = str(tmp_path / "new" / "c.duckdb")
    assert not main(["merge", a, b, whole, "--output", str(output)])
    with duckdb.connect(str(output)) as merged:
        assert merged.sql("SELECT count(*) FROM lens").fetchall() == [(24,)]


REFUSED = {
    "DROP VIEW best; DROP TABLE prompts": "table prompts, column",
    "ALTER TABLE models ADD COLUMN more INTEGER": "table models, column more",
    "ALTER TABLE models ALTER layers TYPE INTEGER": "table models, column layers",
    "DROP VIEW best": "views or macros",
    "UPDATE runs SET step_version = 3 WHERE stage = 'lens'": "stage lens: version 2 in",
    "UPDATE runs SET vecsweep = '0.2.0'": "vecsweep: version 0.1.0 in",
    "UPDATE models SET sha256 = 'x'": "table models: model m (revision, sha256)",
    "UPDATE models SET revision = 'x'": "table models: model m (revision, sha256)",
    "UPDATE models SET layers = 3": "table models: model m:",
    "UPDATE tasks SET title = 'x'": "table tasks: task towns (task, title, kind)",
    "UPDATE lens SET rank = 9 WHERE prompt_id = 2": "table lens: model m, task towns:",
    "DELETE FROM lens WHERE prompt_id = 2": "table lens: model m, task towns:",
    "UPDATE interventions SET rank = 2": "table interventions: model m, ovector_task towns",
    "UPDATE paper SET value = 1": "table paper: its rows",
    "DROP VIEW best; DROP VIEW means; DROP TABLE lens; DROP TABLE runs": "has no tables",
}


@pytest.mark.parametrize("change", REFUSED)
def test_refused(databases, tmp_path, capsys, change):
    refused(databases(change), tmp_path, capsys, REFUSED[change])


def refused(paths, tmp_path, capsys, why):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["merge", *paths, "--output", str(tmp_path / "c.duckdb")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("vecsweep merge: ") and message.count("\n") == 1, message
    assert why in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_refused_arguments(databases, tmp_path, capsys):
    a, b = databases()
    (tmp_path / "none.duckdb").write_text("no database" * 1000)
    refused([a, str(tmp_path / "none.duckdb")], tmp_path, capsys, "not a valid DuckDB database")
    refused([a, str(tmp_path / "missing.duckdb")], tmp_path, capsys, "missing.duckdb")
    refused([a], tmp_path, capsys, "two or more")
    refused([a, a], tmp_path, capsys, "once")
    refused([a, str(tmp_path / "c.duckdb")], tmp_path, capsys, "--output")


def test_a_failure_while_writing_leaves_nothing(databases, tmp_path, capsys, monkeypatch):
    from vecsweep.tools import merge as tool

    def full(*_):
        raise duckdb.IOException("Could not write file: no space left on device")

    monkeypatch.setattr(tool, "add_definitions", full)
    refused(databases(), tmp_path, capsys, "no space left")


SIZE = scale.Size(models=2, tasks=2, layers=4, layers_per_job=2, prompts=8, novel=8, vocabulary=40)


@pytest.fixture(scope="module")
def summarized(tmp_path_factory):
    """summarized(models, tasks): the path of a real summary of a part of one made-up sweep."""
    folder = tmp_path_factory.mktemp("halves")
    sweep = SIZE.sweep(folder / "results")
    scale.make(sweep, SIZE)

    def make(models, tasks=("task00", "task01")):
        path = folder / f"{'-'.join([*models, *tasks])}.duckdb"
        words = scale.summary(sweep, 200)
        settings = json.loads(words[words.index("--settings") + 1])
        settings["grid"] = {model: settings["grid"][model] for model in models}
        settings["tasks"] |= {"all": list(tasks), "injected": list(tasks)}
        words[words.index("--settings") + 1] = json.dumps(settings)
        words[words.index("--database") + 1] = str(path)
        assert main(words) == 0
        return str(path)

    return make


def content(path):
    """Rows of all tables and views, and all comments that a summary has."""
    query = """SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal
               UNION ALL SELECT view_name, NULL, comment FROM duckdb_views() WHERE NOT internal
               UNION ALL SELECT table_name, NULL, comment FROM duckdb_tables()
               ORDER BY ALL"""
    with duckdb.connect(str(path), read_only=True) as database:
        comments = database.execute(query).fetchall()
        names = sorted({name for name, _, _ in comments})
        # As text: nan is not itself.
        rows = {n: str(database.execute(f"FROM {n} ORDER BY ALL").fetchall()) for n in names}
    return rows | {"comments": comments}


BOTH = ["model00", "model01"]
PARTS = {
    "models": [(["model00"],), (["model01"],)],
    "overlapping": [(["model00"],), (BOTH,)],
    "tasks of the same models": [(BOTH, ["task00"]), (BOTH, ["task01"])],
}


@pytest.mark.parametrize("name", PARTS)
def test_halves_are_the_whole(summarized, tmp_path, name):
    whole = content(summarized(BOTH))
    with merge([summarized(*part) for part in PARTS[name]], tmp_path):
        pass
    merged = content(tmp_path / "new" / "c.duckdb")
    assert merged.keys() == whole.keys()
    for name in whole:
        assert merged[name] == whole[name], name
