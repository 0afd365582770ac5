"""Stage `summary`: all results in one DuckDB database, and the tables that people read."""

import os
import shutil
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from vecsweep import Problem, tables
from vecsweep.effects import effects
from vecsweep.files import PACKAGE, replacing
from vecsweep.layout import STAGES, Cell
from vecsweep.statistics import (
    BAND,
    MACROS,
    SEED,
    band,
    chance_among,
    crossover_row,
    curve_rows,
    pair_band,
    resampled_means,
    share_band,
)
from vecsweep.sweep import blocks

SQL = PACKAGE / "sql"


def run(args):
    """Build the database from the grid's files and nothing else, then the CSV tables."""
    grid = {model: blocks(*cut) for model, cut in args.settings["grid"].items()}
    tasks = args.settings["tasks"]
    files = grid_files(args.results, grid, tasks)
    with replacing(args.database) as temporary, workplace(args.database) as folder:
        database = Path(folder) / "summary.duckdb"
        try:
            with duckdb.connect(str(database), config=limits(args.memory)) as connection:
                build(connection, files, tasks, args.settings["top_k"])
                add_runs(connection, args.results, files)
                add_statistics(connection, args.settings["resamples"])
                add_views(connection)
                add_bands(connection, args.settings["resamples"])
                write_tables(connection, args.tables)
                tables.comment_on(connection)
        except duckdb.OutOfMemoryException as error:
            more = f"--set-resources summary:mem_mb={2 * args.memory}"
            raise Problem(f"{args.memory} MB of memory do not do: ask for more, {more}") from error
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if "Could not write" in reason:  # the disk is full
                raise Problem(f"cannot write {args.database}: {reason}") from error
            if isinstance(error, (duckdb.IOException, duckdb.InvalidInputException)):
                raise Problem(f"a result is missing or damaged: {reason}; run again") from error
            raise
        os.replace(database, temporary)


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

    `tasks` lists `all` tasks, and those whose o-vectors are `injected`, or that are `ablated` or
    `swapped`.
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
        + files("selection", tasks["injected"]),
        "ablations": files("ablations", tasks["ablated"]),
        "swaps": files("swaps", tasks["swapped"]),
        "attribution": files("attribution", tasks["all"]),
    }


def build(connection, files: dict[str, list[str]], tasks: dict, top_k: int) -> None:
    """Create the tables of `sql/summary.sql` from explicit lists of files.

    Stages that the config leaves out have no files; their tables are made, without rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {table: paths or [empty_table(table, folder)] for table, paths in files.items()}
        values |= {"injected": tasks["injected"], "tasks": tasks["all"]}
        values["paper"] = [str(SQL / "paper.csv")]
        statements = (SQL / "summary.sql").read_text().replace("$top_k", str(top_k))
        for name, strings in values.items():
            listed = ", ".join(f"'{text}'" for text in strings)
            statements = statements.replace(f"${name})", f"[{listed}]::VARCHAR[])")
            statements = statements.replace(f"${name},", f"[{listed}]::VARCHAR[],")
        connection.execute(MACROS)
        connection.execute(statements)
    add_chances(connection)


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
    query = (SQL / "runs.sql").read_text()
    connection.execute(query, {"paths": paths, "start": len(f"{results}/") + 1})


def add_statistics(connection, resamples: int, seed: int = SEED) -> None:
    """Tables `curves`, `crossovers` and `effects`: means over prompts with 95 % bands.

    `curves`: mean reciprocal rank of argument and answer by layer. `crossovers`: the depth,
    (layer + 1) / layers, from which on the answer's mean reciprocal rank is the larger one.
    Subset `correct` holds the prompts that are answered correctly, `all` every prompt.
    """
    # A cell at a time: memory does not grow with the sweep. One transaction: one write.
    connection.begin()
    query = "SELECT DISTINCT model, task, prompt_set FROM stages ORDER BY ALL"
    for cell in connection.execute(query).fetchall():
        for labels, values in subsets(connection, *cell):
            drawn = resampled_means(values, resamples, seed)
            add(connection, "curves", pd.DataFrame(curve_rows(values, drawn, labels)))
            add(connection, "crossovers", pd.DataFrame([crossover_row(values, drawn, labels)]))
    for (model,) in connection.execute("SELECT model FROM models ORDER BY ALL").fetchall():
        add(connection, "effects", effects(connection, model, resamples))
    add_swap_bands(connection, resamples, seed)
    add_attribution_bands(connection, resamples, seed)
    connection.commit()


def add_swap_bands(connection, resamples: int, seed: int) -> None:
    """Table `swap_bands`: whose answer is on top after an exchange, with intervals over prompts."""
    keys = ["model", "task", "sublayer", "layer"]
    columns = [f"{share}{end}" for share in ("own", "others") for end in ("", "_low", "_high")]
    types = dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64")
    types |= {"layer": "int32", "pairs": "int64", "prompts": "int64"}
    found = []
    for model, task in connection.execute(
        "SELECT DISTINCT model, task FROM swaps ORDER BY ALL"
    ).fetchall():
        rows = connection.execute(
            "SELECT * FROM swaps WHERE model = ? AND task = ?", [model, task]
        ).df()
        for key, group in rows.groupby(["sublayer", "layer"], sort=True):
            outcomes = group.pivot(index="prompt_id", columns="other_id", values="outcome")
            bands = [
                value
                for share in ("own", "others")
                for value in pair_band(outcomes == share, resamples, seed)
            ]
            found.append([model, task, *key, len(group), len(outcomes), *bands])
    frame = pd.DataFrame(found, columns=[*keys, "pairs", "prompts", *columns])
    add(connection, "swap_bands", frame.astype(types))


def add_attribution_bands(connection, resamples: int, seed: int) -> None:
    """Table `attribution_bands`: mean contributions of prompts answered correctly, with bands."""
    keys = ["model", "task", "prompt_set", "layer", "sublayer"]
    columns = ["contribution", "low", "high"]
    types = dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64")
    types |= {"layer": "Int16", "prompts": "int64"}
    add(connection, "attribution_bands", pd.DataFrame(columns=[*types]).astype(types))
    cells = "SELECT DISTINCT model, task, prompt_set FROM attribution WHERE correct ORDER BY ALL"
    for cell in connection.execute(cells).fetchall():
        rows = connection.execute(
            """SELECT prompt_id, layer, sublayer, contribution FROM attribution
               WHERE correct AND model = ? AND task = ? AND prompt_set = ?""",
            cell,
        ).df()
        # Embedding and biases have no layer; pandas would leave them out.
        rows["layer"] = rows.layer.astype("Int16").fillna(-1)
        wide = rows.pivot(
            index="prompt_id", columns=["layer", "sublayer"], values="contribution"
        ).sort_index(axis=1)
        values = wide.to_numpy(float)
        low, high = np.quantile(resampled_means(values, resamples, seed), BAND, axis=0)
        found = [
            [*cell, None if layer < 0 else layer, part, *numbers, len(wide)]
            for (layer, part), *numbers in zip(wide.columns, values.mean(0), low, high)
        ]
        frame = pd.DataFrame(found, columns=[*keys, *columns, "prompts"])
        add(connection, "attribution_bands", frame[[*types]].astype(types))


def add(connection, table: str, rows: pd.DataFrame) -> None:
    """Append rows to a table, which the first ones make."""
    connection.register("frame", rows)
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM frame LIMIT 0")
    connection.execute(f"INSERT INTO {table} SELECT * FROM frame")


def subsets(connection, model: str, task: str, prompt_set: str):
    """(labels, reciprocal ranks [prompts, 2, layers]) of the subsets `all` and `correct`.

    In-domain prompts alone, so that no quota of another group weighs in. A subset without prompts
    is left out.
    """
    rows = connection.execute(
        """SELECT prompt_id, layer, target, reciprocal_rank, pattern != 'incorrect' AS correct
           FROM lens JOIN stages USING (model, task, prompt_set, prompt_id)
           JOIN prompts USING (model, task, prompt_set, prompt_id)
           WHERE site = 'resid_post' AND NOT out_of_domain AND model = ? AND task = ? AND prompt_set = ?
           ORDER BY target, layer, prompt_id""",
        [model, task, prompt_set],
    ).df()
    for subset in ("all", "correct"):
        chosen = rows if subset == "all" else rows[rows.correct]
        if chosen.empty:
            continue
        wide = chosen.pivot(
            index="prompt_id", columns=["target", "layer"], values="reciprocal_rank"
        ).sort_index(axis=1)
        labels = {"model": model, "task": task, "prompt_set": prompt_set, "subset": subset}
        yield labels, np.stack([wide["argument"].values, wide["answer"].values], axis=1)


def add_views(connection) -> None:
    """A view for each file of `sql/tables/` (written as CSV too) and `sql/views/` (for figures)."""
    waiting = {path.stem: path.read_text() for path in sorted(SQL.glob("[tv]*s/*.sql"))}
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


def add_bands(connection, resamples: int, only: tuple[str, ...] = ()) -> None:
    """What figures draw with a band: `layer_bands`, `part_bands`, `length_bands`.

    Means over prompts of the views methods_by_layer, parts and word_lengths; the share of a part
    is of the whole vector's lift. `only` names some of these tables.
    """
    for query, table, keys, columns in BANDS:
        if only and table not in only:
            continue
        rows = connection.execute(f"SELECT * FROM {query}").df()
        add(
            connection, table, pd.DataFrame(columns=[*keys, *columns]).astype(_types(keys, columns))
        )
        found = []
        for key, group in rows.groupby(keys, sort=True):
            found.append([*key, len(group), *BANDED[table](group, resamples)])
        if found:
            frame = pd.DataFrame(found, columns=[*keys, *columns])
            add(connection, table, frame.astype(_types(keys, columns)))


def _types(keys, columns):
    numbers = {"start_layer": "int32", "size": "int32", "prompts": "int32"}
    return dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64") | {
        c: kind for c, kind in numbers.items() if c in (*keys, *columns)
    }  # fmt: skip


def _layer_band(group, resamples):
    return *band(group.after, resamples), group.before.mean()


def _part_band(group, resamples):
    lift, whole = group.after - group.before, group.whole - group.before
    return *share_band(lift, whole, resamples), band(whole, resamples)[1]


def _length_band(group, resamples):
    return *band(group.before, resamples), *band(group.after, resamples)


# View or query, table, keys, columns of its bands after the number of prompts.
BANDS = (
    (
        "methods_by_layer",
        "layer_bands",
        ["model", "task", "method", "start_layer"],
        ["prompts", "after", "low", "high", "before"],
    ),
    (
        "parts",
        "part_bands",
        ["model", "task", "basis", "k"],
        ["prompts", "share", "low", "high", "whole_low"],
    ),
    (
        "lengths",
        "length_bands",
        ["model", "length", "size"],
        ["prompts", "before", "before_low", "before_high", "after", "after_low", "after_high"],
    ),
)
BANDED = {"layer_bands": _layer_band, "part_bands": _part_band, "length_bands": _length_band}


def write_tables(connection, folder: Path) -> None:
    """The CSV tables: the views of `sql/tables/`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((SQL / "tables").glob("*.sql")):
        connection.execute(f"COPY {path.stem} TO '{folder / path.stem}.csv' (HEADER)")
