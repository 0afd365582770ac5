"""Stage `summary`: all results in one DuckDB database, and the tables that people read."""

import json
import tempfile
from pathlib import Path

from vecsweep import Problem
from vecsweep.files import replacing, write_table

SQL = Path(__file__).parent / "sql"


def arguments(parser):
    parser.add_argument("--results", type=Path, required=True, help="the results folder")
    parser.add_argument(
        "--grid", type=json.loads, required=True, help='JSON: {"model": ["0-11", ...], ...}'
    )
    parser.add_argument(
        "--tasks", type=json.loads, required=True, help="JSON: lists all, injected and ablated"
    )
    parser.add_argument("--resamples", type=int, required=True, help="bootstrap resamples")
    parser.add_argument("--database", type=Path, required=True, help="DuckDB file to write")
    parser.add_argument("--tables", type=Path, required=True, help="folder for CSV tables")


def run(args):
    """Build the database from the grid's files and nothing else, then the CSV tables."""
    import duckdb

    with replacing(args.database) as temporary:
        with duckdb.connect(str(temporary)) as connection:
            files = grid_files(args.results, args.grid, args.tasks)
            try:
                build(connection, files, args.tasks["injected"])
                add_runs(connection, args.results, files)
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                reason = str(error).splitlines()[0]
                raise Problem(f"a result is missing or damaged: {reason}; run again") from error
            add_statistics(connection, args.resamples)
            write_tables(connection, args.tables)


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
    import pyarrow as pa

    from vecsweep import ablations, interventions, ovectors

    schema = {"ovectors": ovectors, "interventions": interventions, "ablations": ablations}
    path = f"{folder}/{stage}.parquet"
    write_table(schema[stage].schema(pa).empty_table(), path)
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
    import numpy as np
    import pandas as pd

    groups = connection.execute(
        "SELECT DISTINCT model, task, prompt_set FROM stages ORDER BY ALL"
    ).fetchall()
    curves, crossovers = [], []
    for model, task, prompt_set in groups:
        rows = connection.execute(
            """SELECT prompt_id, layer, target, reciprocal_rank, pattern != 'incorrect' AS correct
               FROM lens JOIN stages USING (model, task, prompt_set, prompt_id)
               WHERE site = 'resid_post' AND (model, task, prompt_set) = (?, ?, ?)
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
            values = np.stack([wide["argument"].values, wide["answer"].values], axis=1)
            drawn = resampled_means(values, resamples, seed)
            curves += curve_rows(values, drawn, labels)
            crossovers.append(crossover_row(values, drawn, labels))
    tables = {"curves": pd.DataFrame(curves), "crossovers": pd.DataFrame(crossovers)}
    tables["effects"] = effects(connection, resamples, seed)
    for name, frame in tables.items():
        connection.register("frame", frame)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM frame")


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


def effects(connection, resamples: int, seed: int):
    """A row for each intervention on test: means over prompts with bands, a pandas frame.

    Repeats of a control (random vectors, unrelated prompts) are averaged prompt by prompt first.
    Rows with control `donor` are means over the other donors, with bands over donors.
    """
    import numpy as np
    import pandas as pd

    listed = ", ".join((*SETTING, "scale"))
    unit = "CASE WHEN control = 'donor' THEN donor ELSE prompt_id END"
    averages = ", ".join(f"avg({measure}) AS {measure}" for measure in MEASURES)
    rows = connection.execute(
        f"""SELECT {listed}, {unit} AS unit, {averages}
            FROM outcomes WHERE split = 'test' GROUP BY ALL ORDER BY ALL"""
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
    columns = [*SETTING, "scale", "units"]
    columns += [f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high")]
    types = {c: "str" for c in SETTING if not c.endswith("layer")} | {"units": "int32"}
    return pd.DataFrame(table, columns=columns).astype(
        types
        | {c: "int32" if c.endswith("layer") else "float64" for c in columns if c not in types}
    )


def resampled_means(values, resamples: int, seed: int):
    """Bootstrap means over the first axis: values [prompts, ...] -> [resamples, ...]."""
    import numpy as np

    count = len(values)
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples)
    return np.tensordot(weights / count, values, axes=1)


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
