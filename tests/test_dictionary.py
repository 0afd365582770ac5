"""tables.yaml says what stages write and the database holds; results/README.md is made of it."""

import re

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from conftest import REPO, main
from vecsweep import Problem, tables
from vecsweep.config import UniqueKeys
from vecsweep.files import write_tensors
from vecsweep.tools import scale

SIZE = scale.Size(models=2, tasks=2, layers=4, layers_per_job=2, prompts=8, novel=8, vocabulary=40)


NOT_MADE = {"heads", "ablations", "swaps", "patching", "relational", "tuned"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Made-up results of every stage but those of NOT_MADE, and their summary."""
    folder = tmp_path_factory.mktemp("dictionary") / "results"
    scale.make(SIZE.sweep(folder), SIZE)
    assert main(scale.summary(SIZE.sweep(folder), 200)) == 0
    return folder


@pytest.fixture
def connection(results):
    with duckdb.connect(str(results / "summary.duckdb"), read_only=True) as database:
        yield database


def described(name):
    return tables.dictionary()["tables"][name]


def test_all_is_described_once():
    """No column without type or meaning, none described that no table has, keys of own columns."""
    about, used = tables.dictionary(), set()
    for table in (*about["files"].values(), *about["tables"].values()):
        for name, column in table["columns"].items():
            assert column["meaning"].endswith("."), name
            assert tables.database_type(column["type"])
            used.add(name)
        assert set(table["key"]) <= table["columns"].keys()
        assert table["meaning"].endswith(".") and table["row"]
    assert about["columns"].keys() <= used
    paths = [path.stem for path in (REPO / "workflow/vecsweep/sql/tables").glob("*.sql")]
    assert {name for name, t in about["tables"].items() if t["form"] == "csv"} == set(paths)


def test_what_stages_write(results):
    seen = set()
    for path in results.rglob("*.parquet"):
        stage = path.relative_to(results).parts[0]
        name = {"models": "vocabulary", "selection": "interventions"}.get(stage, stage)
        assert pq.read_schema(path).remove_metadata().equals(tables.schema(name)), path
        assert tables.read(name, path).schema.remove_metadata().equals(tables.schema(name))
        seen.add(name)
    assert seen == tables.dictionary()["files"].keys() - NOT_MADE


def test_nothing_is_described_twice():
    text = (REPO / "workflow" / "vecsweep" / "tables.yaml").read_text()
    yaml.load(text, UniqueKeys)  # a second column of a name would replace the first in silence


def test_the_database_is_described(connection):
    assert tables.undescribed(connection) == []
    database = tables.in_database(connection)
    assert database.keys() == tables.dictionary()["tables"].keys()
    for name, (form, columns) in database.items():
        assert (form == "TABLE") == (described(name)["form"] == "table"), name
        for column, about in described(name)["columns"].items():
            assert columns[column] == tables.database_type(about["type"]), (name, column)


def test_keys_name_rows(connection):
    for name, about in tables.dictionary()["tables"].items():
        if about["key"]:
            columns = ", ".join(f'"{column}"' for column in about["key"])
            query = f"SELECT {columns}, count(*) FROM {name} GROUP BY ALL HAVING count(*) > 1"
            assert connection.execute(query).fetchall() == [], name


def test_enumerations_are_complete(connection):
    for name, about in tables.dictionary()["tables"].items():
        for column, text in about["columns"].items():
            # neurons_K stands for neurons_1, neurons_all ..., METHOD for any word.
            patterns = [re.sub(r"(?<![A-Za-z])(K|[A-Z]{2,})$", r".+", v) for v in text["values"]]
            query = f'SELECT DISTINCT "{column}" FROM {name} WHERE "{column}" IS NOT NULL'
            for (value,) in connection.execute(query).fetchall() if patterns else []:
                assert re.fullmatch("|".join(patterns), value), (name, column, value)


def test_comments_are_in_the_file(connection):
    silent = "SELECT {0}_name FROM duckdb_{0}s() WHERE NOT internal AND comment IS NULL"
    for kind in ("table", "view"):
        assert connection.execute(silent.format(kind)).fetchall() == []
    columns = silent.format("column").replace("column_name", "table_name || '.' || column_name", 1)
    assert {name for (name,) in connection.execute(columns).fetchall()} == set()
    (said,) = connection.execute(
        "SELECT comment FROM duckdb_columns() WHERE (table_name, column_name) = ('lens', 'site')"
    ).fetchone()
    assert said.startswith("State of the residual stream") and "resid_mid: after" in said


def test_undescribed():
    with duckdb.connect() as database:
        database.execute("CREATE TABLE mine AS SELECT 1 AS a")
        database.execute("CREATE VIEW tasks AS SELECT 't' AS task, 1 AS colour")
        assert tables.undescribed(database) == ["mine", "tasks.colour"]
        tables.comment_on(database)  # what is not described stays as it is
        database.execute("CREATE TEMP TABLE frame AS SELECT 1 AS a")
        assert tables.undescribed(database) == ["mine", "tasks.colour"]


ROWS = [
    {"model": "m", "task": "t", "prompt_set": "novel", "sublayer": "ffn", "value": "zero"}
    | {"order": "top", "step": 1, "removed_layers": 2, "fraction": 0.5, "prompt_id": number}
    | {"rank": None, "correct": None}
    for number in range(3)
]


def test_write_and_read(tmp_path):
    path = tmp_path / "x.parquet"
    shuffled = [dict(reversed(row.items())) for row in ROWS]
    tables.write("ablations", shuffled, path, {"step_version": 7})
    assert tables.read("ablations", path).to_pylist() == ROWS
    assert pq.read_schema(path).metadata[b"step_version"] == b"7"
    some = tables.read("ablations", path, ["rank", "step"])
    assert some.column_names == ["rank", "step"] and some["step"].type == pa.int16()
    tables.write("ablations", [], path)
    assert tables.read("ablations", path).schema.names == tables.schema("ablations").names
    # A column without values has no type yet.
    table = pa.table(pa.Table.from_pylist(ROWS, tables.schema("ablations")))
    table = table.set_column(10, "rank", pa.nulls(3))
    tables.write("ablations", table, path)
    assert tables.read("ablations", path).to_pylist() == ROWS


@pytest.mark.parametrize(
    "change, said",
    [
        ({"extra": 1}, "missing or not described: extra"),
        ({"rank": ...}, "missing or not described: rank"),
        ({"step": 1.5}, "column step: double is not int16"),
        ({"step": 40_000}, "column step: .*40000"),
        ({"correct": 1}, "column correct: "),
        ({"model": 1}, "column model: "),
        ({"rank": "first"}, "column rank: "),
    ],
)
def test_write_refuses(tmp_path, change, said):
    row = {key: value for key, value in (ROWS[0] | change).items() if value is not ...}
    with pytest.raises(ValueError, match=f"table ablations.*{said}"):
        tables.write("ablations", [ROWS[0], row], tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


def test_write_refuses_a_table_of_other_types(tmp_path):
    table = pa.Table.from_pylist(ROWS)  # whole numbers as int64
    with pytest.raises(ValueError, match="table ablations, column step: int64 is not int16"):
        tables.write("ablations", table, tmp_path / "x.parquet")
    row = [{"model": "m", "task": "t", "donor": None, "layer": 1, "argument": "", "answer": ""}]
    row[0] |= {
        "rule": "flips",
        "flips": 1,
        "norm": 1.0,
        "cosine_to_mean": 1.0,
        "promoted": [1.5],
        "demoted": [1],
    }
    with pytest.raises(ValueError, match="table ovectors, column promoted: double is not int32"):
        tables.write("ovectors", row, tmp_path / "x.parquet")


def test_read_refuses_other_columns(tmp_path):
    path = tmp_path / "x.parquet"
    tables.write("ablations", ROWS, path)
    with pytest.raises(Problem, match=rf"{path} has other columns than table stages \(.*pattern"):
        tables.read("stages", path)
    pq.write_table(pa.table({"rank": ["first"]}), path)
    with pytest.raises(Problem, match="other columns than table ablations .*; delete it and run"):
        tables.read("ablations", path, ["rank"])


def test_readme_is_the_committed_one(tmp_path):
    assert main(["dictionary", "--output", str(tmp_path / "README.md")]) == 0
    made = (tmp_path / "README.md").read_text()
    assert made == (REPO / "results/README.md").read_text(), "run `vecsweep dictionary`"


def examples(language):
    return re.findall(rf"```{language}\n(.*?)```", tables.readme(), re.DOTALL)


def test_queries_of_the_readme(connection):
    queries = examples("sql")
    assert len(queries) == 3
    for query in queries:
        assert connection.execute(query).fetchall(), query


def test_python_of_the_readme(tmp_path, monkeypatch):
    (lines,) = examples("python")
    (path,) = re.findall(r'Tensors\("(.*?)"\)', lines)
    states = {f"ffn_out.{layer:02d}": torch.full((5, 8), float(layer)) for layer in range(18)}
    write_tensors(states, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines, names)
    assert names["updates"].shape == (5, 8) and (names["updates"] == 15).all()


def test_links_of_the_readme():
    text = tables.readme()
    headings = {line.strip("# ").replace(" ", "-") for line in text.splitlines() if line[:1] == "#"}
    links = re.findall(r"\]\(#(.*?)\)", text)
    assert len(links) == len(set(links)) and set(links) <= headings
