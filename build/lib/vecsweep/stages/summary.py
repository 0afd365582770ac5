"""Stage `summary`: all results in one DuckDB database, and the tables that people read."""

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from vecsweep import Problem, tables
from vecsweep.files import PACKAGE, replacing
from vecsweep.layout import blocks

SQL = PACKAGE / "sql"


def run(args):
    """Build the database from the grid's files and nothing else, then the CSV tables."""
    import duckdb

    grid = {model: blocks(*cut) for model, cut in args.settings["grid"].items()}
    tasks = args.settings["tasks"]
    files = grid_files(args.results, grid, tasks)
    with replacing(args.database) as temporary, workplace(args.database) as folder:
        database = Path(folder) / "summary.duckdb"
        try:
            with duckdb.connect(str(database), config=limits(args.memory)) as connection:
                build(connection, files, tasks["injected"])
                add_runs(connection, args.results, files)
                add_statistics(connection, args.settings["resamples"])
                write_tables(connection, args.tables)
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
    """The files of a grid {model: layer blocks} x tasks, by stage.

    `tasks` lists `all` tasks, and those whose o-vectors are `injected` or that are `ablated`.
    """

    def cells(stage, names, ending="parquet"):
        return [f"{results}/{stage}/{m}/{t}.{ending}" for m in grid for t in names]

    def blocks(stage, names):
        return [
            f"{results}/{stage}/{m}/{t}/{b}.parquet" for m in grid for t in names for b in grid[m]
        ]

    return {
        "models": [f"{results}/models/{model}/model.json" for model in grid],
        "vocabularies": [f"{results}/models/{model}/vocabulary.parquet" for model in grid],
        "prompts": cells("prompts", tasks["all"]),
        "lens": blocks("lens", tasks["all"]),
        "stages": cells("stages", tasks["all"]),
        "ovectors": cells("ovectors", tasks["injected"]),
        "interventions": blocks("interventions", tasks["injected"])
        + cells("selection", tasks["injected"]),
        "ablations": cells("ablations", tasks["ablated"]),
    }


def build(connection, files: dict[str, list[str]], injected: list[str]) -> None:
    """Create the tables of `sql/summary.sql` from explicit lists of files.

    Stages that the config leaves out have no files; their tables are made, without rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {table: paths or [empty_table(table, folder)] for table, paths in files.items()}
        values["injected"] = injected
        statements = (SQL / "summary.sql").read_text()
        for name, strings in values.items():
            listed = ", ".join(f"'{text}'" for text in strings)
            statements = statements.replace(f"${name})", f"[{listed}]::VARCHAR[])")
            statements = statements.replace(f"${name},", f"[{listed}]::VARCHAR[],")
        connection.execute(statements)


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


def add_statistics(connection, resamples: int, seed: int = 0) -> None:
    """Tables `curves`, `crossovers` and `effects`: means over prompts with bootstrap 95 % bands.

    `curves`: mean reciprocal rank of argument and answer by layer. `crossovers`: the depth,
    (layer + 1) / layers, from which on the answer's mean reciprocal rank is the larger one.
    Subset `correct` holds the prompts that are answered correctly, `all` every prompt.
    """
    import pandas as pd

    def add(table, rows):
        connection.register("frame", rows)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM frame LIMIT 0")
        connection.execute(f"INSERT INTO {table} SELECT * FROM frame")

    # A cell at a time: memory does not grow with the sweep. One transaction: one write.
    connection.begin()
    query = "SELECT DISTINCT model, task, prompt_set FROM stages ORDER BY ALL"
    for cell in connection.execute(query).fetchall():
        for labels, values in subsets(connection, *cell):
            drawn = resampled_means(values, resamples, seed)
            add("curves", pd.DataFrame(curve_rows(values, drawn, labels)))
            add("crossovers", pd.DataFrame([crossover_row(values, drawn, labels)]))
    add("effects", effect_frame([]))
    query = "SELECT DISTINCT model, ovector_task FROM interventions ORDER BY ALL"
    for cell in connection.execute(query).fetchall():
        add("effects", effect_frame(effects(connection, *cell, resamples, seed)))
    connection.commit()


def subsets(connection, model: str, task: str, prompt_set: str):
    """(labels, reciprocal ranks [prompts, 2, layers]) of the subsets `all` and `correct`.

    A subset without prompts is left out.
    """
    import numpy as np

    rows = connection.execute(
        """SELECT prompt_id, layer, target, reciprocal_rank, pattern != 'incorrect' AS correct
           FROM lens JOIN stages USING (model, task, prompt_set, prompt_id)
           WHERE site = 'resid_post' AND model = ? AND task = ? AND prompt_set = ?
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


# What is averaged over the prompts of an intervention; each mean gets a band.
MEASURES = (
    "reciprocal_rank_before",
    "reciprocal_rank_after",
    "top_1_before",
    "top_1",
    "top_5",
    "top_10",
    "no_effect",
    "argument_stays",
    "other_answer",
    "other",
)
SETTING = ("model", "ovector_task", "task", "domain", "control", "start_layer", "end_layer", "mode")


def effects(connection, model: str, ovector_task: str, resamples: int, seed: int) -> list[dict]:
    """A row for each intervention with a task's vectors on test: means over prompts with bands.

    Repeats of a control (random vectors, unrelated prompts) are averaged prompt by prompt first.
    Rows with control `donor` are means over the other donors, with bands over donors.
    """
    import numpy as np

    listed = ", ".join((*SETTING, "scale"))
    unit = "CASE WHEN control = 'donor' THEN donor ELSE prompt_id END"
    averages = ", ".join(f"avg({measure}) AS {measure}" for measure in MEASURES)
    rows = connection.execute(
        f"""SELECT {listed}, {unit} AS unit, {averages}
            FROM outcomes WHERE split = 'test' AND model = ? AND ovector_task = ?
            GROUP BY ALL ORDER BY ALL""",
        [model, ovector_task],
    ).df()
    table = []
    for key, group in rows.groupby([*SETTING, "scale"], sort=True):
        values = group[list(MEASURES)].to_numpy(float)
        low, high = np.quantile(resampled_means(values, resamples, seed), [0.025, 0.975], axis=0)
        row = dict(zip((*SETTING, "scale"), key)) | {"units": len(group)}
        for k, measure in enumerate(MEASURES):
            row |= {
                measure: values[:, k].mean(),
                f"{measure}_low": low[k],
                f"{measure}_high": high[k],
            }
        table.append(row)
    return table


def effect_frame(rows: list[dict]):
    """Rows of `effects` as a pandas frame whose columns have types, also without rows."""
    import pandas as pd

    columns = [*SETTING, "scale", "units"]
    columns += [f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high")]
    types = {c: "str" for c in SETTING if not c.endswith("layer")} | {"units": "int32"}
    return pd.DataFrame(rows, columns=columns).astype(
        types
        | {c: "int32" if c.endswith("layer") else "float64" for c in columns if c not in types}
    )


def resampled_means(values, resamples: int, seed: int):
    """Bootstrap means over the first axis: values [prompts, ...] -> [resamples, ...]."""
    import numpy as np

    return np.tensordot(shares(len(values), resamples, seed), values, axes=1)


@lru_cache(maxsize=2)
def shares(count: int, resamples: int, seed: int):
    """How much each of `count` values weighs in each resample, [resamples, count]."""
    import numpy as np

    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples) / count


def curve_rows(values, drawn, labels: dict) -> list[dict]:
    """Rows of `curves` from values [prompts, 2, layers] and their bootstrap means."""
    import numpy as np

    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    layers = values.shape[-1]
    return [
        labels
        | {
            "target": target,
            "layer": layer,
            "depth": (layer + 1) / layers,
            "prompts": len(values),
            "reciprocal_rank": values[:, k, layer].mean(),
            "low": low[k, layer],
            "high": high[k, layer],
            "top_1": (values[:, k, layer] == 1).mean(),
            "top_10": (values[:, k, layer] >= 1 / 10).mean(),
        }
        for k, target in enumerate(("argument", "answer"))
        for layer in range(layers)
    ]


def crossover_row(values, drawn, labels: dict) -> dict:
    """A row of `crossovers`; depth is missing where the answer never stays ahead."""
    import numpy as np

    found = crossover_depths(values.mean(0, keepdims=True))[0]
    spread = crossover_depths(drawn)
    spread = spread[~np.isnan(spread)]
    low, high = np.quantile(spread, [0.025, 0.975]) if len(spread) else (np.nan, np.nan)
    argument = values[:, 0].mean(0)
    return labels | {
        "prompts": len(values),
        "depth": found,
        "low": low,
        "high": high,
        "argument_peak": argument.max(),
        "argument_peak_layer": int(argument.argmax()),
        "argument_end": argument[-1],
        "answer_end": values[:, 1, -1].mean(),
    }


def crossover_depths(means):
    """Depths [n] from which on the answer leads for good, means [n, 2, layers].

    nan if it never does, or if it leads from the first layer on: nothing is crossed then.
    """
    import numpy as np

    layers = means.shape[-1]
    behind = means[:, 1] <= means[:, 0]
    last_behind = np.where(behind.any(-1), layers - 1 - behind[:, ::-1].argmax(-1), -1)
    crossed = (last_behind >= 0) & (last_behind < layers - 1)
    return np.where(crossed, (last_behind + 2) / layers, np.nan)


def write_tables(connection, folder: Path) -> None:
    """The CSV tables, one a query in `sql/tables/`, which also become views of the database."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((SQL / "tables").glob("*.sql")):
        connection.execute(f"CREATE VIEW {path.stem} AS {path.read_text()}")
        connection.execute(f"COPY {path.stem} TO '{folder / path.stem}.csv' (HEADER)")
