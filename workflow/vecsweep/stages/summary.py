"""Stage `summary`: all results in one DuckDB database, and the tables that people read."""

import csv
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import duckdb

from vecsweep import Problem, finished, invariants, tables
from vecsweep.bands import add_bands, add_statistics
from vecsweep.engine.sources import sha256
from vecsweep.files import PACKAGE, replacing
from vecsweep.layout import STAGES, Cell
from vecsweep.statistics import MACROS, chance_among
from vecsweep.sweep import blocks

SQL = PACKAGE / "sql"
FULL = ("Could not write", "No space left", "File too large")  # what DuckDB says of a full disk


def run(args):
    """Build the database from the grid's files and nothing else, then the CSV tables."""
    grid = {model: blocks(*cut) for model, cut in args.settings["grid"].items()}
    tasks = args.settings["tasks"]
    files = grid_files(args.results, grid, tasks)
    with replacing(args.database) as temporary, workplace(args.database) as folder:
        database, written = Path(folder) / "summary.duckdb", Path(folder) / "tables"
        try:
            with duckdb.connect(str(database), config=limits(args.memory)) as connection:
                invariants.check_files(connection, files, args.settings["grid"])
                build(connection, files, tasks, args.settings["top_k"])
                add_series(connection, args.settings.get("series", {}))
                invariants.check_rows(connection, args.results, args.settings["grid"])
                add_runs(connection, args.results, files)
                add_statistics(connection, args.settings["resamples"])
                add_views(connection)
                add_bands(connection, args.settings["resamples"])
                write_tables(connection, written)
                tables.comment_on(connection)
                counted = counts(connection)
                # By itself DuckDB says nothing of a full disk when it closes a database.
                connection.execute("CHECKPOINT")
            check_written(database, counted)
        except duckdb.OutOfMemoryException as error:
            more = f"--set-resources summary:mem_mb={2 * args.memory}"
            raise Problem(f"{args.memory} MB of memory do not do: ask for more, {more}") from error
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if any(words in reason for words in FULL):
                raise Problem(f"cannot write {args.database}: {reason}") from error
            if isinstance(error, (duckdb.IOException, duckdb.InvalidInputException)):
                raise Problem(f"a result is missing or damaged: {reason}; run again") from error
            raise
        # Nothing takes its place before all is there.
        args.tables.mkdir(parents=True, exist_ok=True)
        for path in sorted(written.iterdir()):
            with replacing(args.tables / path.name) as csv_file:
                os.replace(path, csv_file)
        os.replace(database, temporary)
    # What jobs of several tasks left when one of these failed: nothing will try them again.
    for name in itertools.chain(*files.values()):
        finished.remove(Path(name))


def check_written(database: Path, counted: dict[str, int]) -> None:
    """OSError unless a database that was closed has all tables, with so many rows."""
    with duckdb.connect(str(database), read_only=True) as connection:
        if counts(connection) != counted:
            raise OSError("not all tables came into the database")


def counts(connection) -> dict[str, int]:
    """Table -> number of rows, of the database that is in use."""
    names = [name for name, (form, _) in tables.in_database(connection).items() if form == "TABLE"]
    return {
        name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names
    }


def workplace(database: Path):
    """A folder for the database that is made, with its log and what does not fit in memory.

    Those of summaries that were killed are removed: they may hold gigabytes, and Snakemake's lock
    lets no other summary run.
    """
    prefix = f".{database.name}.making."
    for left in database.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=database.parent)


def limits(memory: int) -> dict:
    """DuckDB's settings for a job of `memory` MB; what does not fit goes to disk.

    One thread sums in one order: the same results give the same tables, to the last digit.
    """
    # The rest is Python, pandas, and what DuckDB does not count.
    return {"memory_limit": f"{memory * 6 // 10}MB", "threads": 1}


def grid_files(results: Path, grid: dict, tasks: dict) -> dict[str, list[str]]:
    """The files of a grid {model: layer blocks} x tasks, by table.

    `tasks` lists `all` tasks, those whose o-vectors are `injected`, of these those `contended` by other
    methods and those whose vectors are `by_heads`, and those that are `ablated`, `swapped`, `patched`
    or `related`, or that a lens is `tuned` on (none if not named).
    """

    def files(name, names=("",), output="output"):
        stage = STAGES[name]
        return [
            stage.paths(Cell(model, task, layers), results)[output]
            for model in grid
            for task in names
            for layers in (grid[model] if "layers" in stage.parts else [""])
        ]

    return {
        "models": files("models", output="description"),
        "vocabularies": files("models", output="vocabulary"),
        "prompts": files("prompts", tasks["all"]),
        "lens": files("lens", tasks["all"]),
        "stages": files("stages", tasks["all"]),
        "ovectors": files("ovectors", tasks["injected"], "table"),
        "interventions": files("interventions", tasks["injected"])
        + files("selection", tasks["injected"])
        + files("contenders", tasks.get("contended", [])),
        "heads": files("heads", tasks.get("by_heads", []), "table"),
        "ablations": files("ablations", tasks["ablated"]),
        "swaps": files("swaps", tasks["swapped"]),
        "patching": files("patching", tasks.get("patched", [])),
        "relational": files("relational", tasks.get("related", [])),
        "attribution": files("attribution", tasks["all"]),
        "tuned": files("tuned") if tasks.get("tuned") else [],
    }


def text(value) -> str:
    """A text as SQL writes it: a folder's name may have an apostrophe."""
    return "'" + str(value).replace("'", "''") + "'"


def build(connection, files: dict[str, list[str]], tasks: dict, top_k: int) -> None:
    """Create the tables of `sql/summary.sql` from explicit lists of files.

    Stages that the config leaves out have no files; their tables are made, without rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {table: paths or [empty_table(table, folder)] for table, paths in files.items()}
        values |= {"injected": tasks["injected"], "tasks": tasks["all"]}
        values["paper"] = [str(SQL / "paper.csv")]
        statements = (SQL / "summary.sql").read_text("utf-8").replace("$top_k", str(top_k))
        for name, strings in values.items():
            listed = ", ".join(text(string) for string in strings)
            statements = statements.replace(f"${name})", f"[{listed}]::VARCHAR[])")
            statements = statements.replace(f"${name},", f"[{listed}]::VARCHAR[],")
        connection.execute(MACROS)
        connection.execute(statements)
    add_chances(connection)


def add_series(connection, series: dict[str, list]) -> None:
    """Fill columns `series` and `step` of table `models`, from {model: [series, step]}."""
    for model, of in series.items():
        connection.execute("UPDATE models SET series = ?, step = ? WHERE model = ?", [*of, model])


def add_chances(connection) -> None:
    """Fill table `chances`: the reciprocal place of the own answer if all answers came in any order."""
    query = "SELECT DISTINCT accepted, alternatives FROM interventions ORDER BY ALL"
    pairs = connection.execute(query).fetchall()
    rows = [[*pair, chance_among(*pair)] for pair in pairs]
    if rows:
        connection.executemany("INSERT INTO chances VALUES (?, ?, ?)", rows)


def empty_table(stage: str, folder: str) -> str:
    """The path of a Parquet file with a stage's columns and no rows."""
    path = f"{folder}/{stage}.parquet"
    tables.write(stage, [], path)
    return path


def add_runs(connection, results: Path, files: dict[str, list[str]]) -> None:
    """Table `runs`: what made each result: code, packages, host, dtype, shards, model, prompts."""
    paths = sorted(
        {path for stage in files.values() for path in stage if path.endswith(".parquet")}
    )
    query = (SQL / "runs.sql").read_text("utf-8")
    connection.execute(query, {"paths": paths, "start": len(f"{results}/") + 1})


def add_views(connection) -> None:
    """A view for each file of `sql/tables/` (written as CSV too) and `sql/views/` (for figures)."""
    waiting = {path.stem: path.read_text("utf-8") for path in sorted(SQL.glob("[tv]*s/*.sql"))}
    while waiting:
        later: dict[str, str] = {}
        for name, query in waiting.items():
            try:
                connection.execute(f"CREATE VIEW {name} AS {query}")
            except duckdb.CatalogException:  # it reads one that is still to come
                if later.keys() | {name} == waiting.keys():
                    raise
                later[name] = query
        waiting = later


SUMS = "SHA256SUMS"


def write_tables(connection, folder: Path) -> None:
    """The CSV tables: the views of `sql/tables/`; OSError unless all rows are there.

    A CSV file has no place for a checksum: those of all are beside, for `sha256sum -c SHA256SUMS`.
    """
    folder.mkdir()
    for view in sorted((SQL / "tables").glob("*.sql")):
        path = folder / f"{view.stem}.csv"
        rows = connection.execute(f"COPY {view.stem} TO {text(path)} (HEADER)").fetchone()[0]
        with open(path, newline="", encoding="utf-8") as file:
            if sum(1 for _ in csv.reader(file)) != rows + 1:
                raise OSError(f"not all rows came into {path.name}")
    sums = [f"{sha256([path])}  {path.name}\n" for path in sorted(folder.glob("*.csv"))]
    (folder / SUMS).write_text("".join(sums), "utf-8")
