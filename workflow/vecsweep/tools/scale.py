"""What the summary takes of time and memory, on made-up results of a large sweep.

    python -m vecsweep.tools.scale FOLDER [--models N] [--tasks N] [--layers N] [--prompts N] ...

Writes results in the stages' own formats under FOLDER, by default 2,000 files of stage lens with
100 million rows for table `lens`; runs stage summary on them as the workflow's rule does, and then
each figure; prints wall time, peak memory and sizes; removes what it wrote.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vecsweep import STEP_VERSIONS, Problem
from vecsweep.files import write_json, write_table


class Size(NamedTuple):
    """How large the sweep is: every model has every task, layer and prompt."""

    models: int = 10
    tasks: int = 20
    layers: int = 50
    layers_per_job: int = 5
    prompts: int = 1250  # of each of the two sets
    novel: int = 100  # prompts of the interventions, half of them dev
    vocabulary: int = 50_000

    def names(self, what):
        return [f"{what}{number:02d}" for number in range(getattr(self, f"{what}s"))]

    def blocks(self):
        step = self.layers_per_job
        return [(i, min(i + step, self.layers) - 1) for i in range(0, self.layers, step)]


# Rows of stage lens for layers $first..$last: the argument comes up at a third of the depth, the
# answer of seven prompts in ten takes over at two thirds; ranks and tokens else are noise.
LENS = """
WITH cells AS (
    SELECT prompt_set, prompt_id, layer, site,
           hash($model, $task, prompt_set, prompt_id, layer, site) AS seed,
           (layer + (site = 'resid_post')::INT) / $layers AS depth
    FROM unnest(range($first, $last + 1)) AS l(layer),
         unnest(['resid_mid', 'resid_post']) AS s(site),
         unnest(['abstractive', 'extractive']) AS p(prompt_set),
         unnest(range($prompts)) AS i(prompt_id)
),
drawn AS (
    SELECT *, [(hash(seed, k) % 1000003) / 1000003 FOR k IN range(4)] AS u,
           [(hash(seed, k) % $vocabulary)::INT FOR k IN range(4, 9)] AS top_token
    FROM cells
)
SELECT $model AS model, $task AS task, prompt_set, prompt_id::INT AS prompt_id,
       layer::SMALLINT AS layer, site,
       top_token, [(u[1] / (k + 1))::FLOAT FOR k IN range(5)] AS top_probability,
       (prompt_id % $vocabulary)::INT AS argument_token,
       if(u[1] < 0.6 AND depth BETWEEN 0.33 AND 0.67, 0,
          1 + (u[2] ** 3 * $vocabulary)::INT) AS argument_rank,
       u[3]::FLOAT AS argument_probability,
       ((prompt_id + 1) % $vocabulary)::INT AS answer_token,
       if(prompt_id % 10 < 7 AND depth > 0.67 + prompt_id % 5 / 20, 0,
          1 + (u[3] ** 3 * $vocabulary)::INT) AS answer_rank,
       u[4]::FLOAT AS answer_probability
FROM drawn
ORDER BY layer, site, prompt_set, prompt_id
"""

VOCABULARY = """
SELECT $model AS model, i::INT AS token_id, ' t' || i AS token FROM range($vocabulary) AS r(i)
"""

PROMPTS = """
SELECT $model AS model, $task AS task, 'Task ' || $task AS title, 'one-to-one' AS kind, prompt_set,
       prompt_id::INT AS prompt_id, '' AS "group", false AS out_of_domain,
       'argument ' || prompt_id AS argument, 'answer ' || prompt_id AS answer,
       'demonstration' AS demonstrations, 'Q: argument ' || prompt_id || '?\\nA:' AS text,
       [prompt_id::INT, 1, 2] AS token_ids,
       (prompt_id % $vocabulary)::INT AS argument_token,
       [((prompt_id + 1) % $vocabulary)::INT] AS answer_tokens,
       1::INT AS argument_length, 1::INT AS answer_length,
       (1 + prompt_id % 8)::INT AS first_token_letters,
       'argument one, answer one' AS stratum, if(prompt_id % 2 = 0, 'dev', 'test') AS split,
       NULL::VARCHAR AS dropped
FROM unnest(['abstractive', 'extractive', 'novel']) AS p(prompt_set),
     unnest(range(greatest($prompts, $novel))) AS i(prompt_id)
WHERE prompt_id < if(prompt_set = 'novel', $novel, $prompts)
ORDER BY prompt_set, prompt_id
"""

# On dev six donors from every start layer; on test one of them and its controls.
INTERVENTIONS = """
WITH settings AS (
    SELECT start_layer, donor, control,
           if(control = 'difference_once', start_layer, $layers - 1) AS end_layer
    FROM unnest(range($first, $last + 1)) AS l(start_layer),
         unnest(if($split = 'dev', range(-1, 5), range(3))) AS d(donor),
         unnest(if($split = 'dev', ['o-vector'],
                   ['o-vector', 'random', 'unrelated', 'difference', 'difference_once', 'zero'])) AS
         c(control)
    WHERE (donor = 0 OR control IN ('random', 'unrelated') OR $split = 'dev')
      AND (control != 'difference_once' OR start_layer = $layers // 2)
),
drawn AS (
    SELECT *, hash($model, $task, start_layer, donor, control, prompt_id) AS seed
    FROM settings, unnest(range(if($split = 'dev', 0, 1), $novel, 2)) AS i(prompt_id)
)
SELECT $model AS model, $task AS task, $task AS ovector_task, donor::INT AS donor,
       7::SMALLINT AS source_layer, start_layer::SMALLINT AS start_layer,
       end_layer::SMALLINT AS end_layer, 'replace' AS mode, 'all' AS position, 1::FLOAT AS scale,
       control, 'in' AS domain, $split AS split, prompt_id::INT AS prompt_id,
       0::INT AS argument_rank_before, 3::INT AS argument_rank_after,
       20::INT AS answer_rank_before, (seed % 30)::INT AS answer_rank_after,
       (prompt_id % $vocabulary)::INT AS top_before,
       ((prompt_id + seed % 3) % $vocabulary)::INT AS top_after
FROM drawn
ORDER BY start_layer, control, donor, prompt_id
"""


def make(results: Path, size: Size) -> None:
    """Write the results of a sweep of this size; the same size gives the same results."""
    import duckdb
    import pyarrow as pa

    from vecsweep.stages import ovectors
    from vecsweep.stages.stages import stages_of

    connection = duckdb.connect(config={"threads": 1})

    def write(stage, name, table):
        notes = {"step_version": STEP_VERSIONS[stage], "shards": 1}
        write_table(table, results / stage / f"{name}.parquet", notes)

    def rows(query, **values):
        # DuckDB wants just the values that a query uses.
        values = size._asdict() | values
        used = {name: value for name, value in values.items() if f"${name}" in query}
        return connection.sql(query, params=used).to_arrow_table()

    for number, model in enumerate(size.names("model")):
        described = {"model": model, "family": "gpt2", "parallel_blocks": False}
        described |= {"layers": size.layers, "d_model": 8, "vocabulary": size.vocabulary}
        described |= {"parameters": 10**8 * (number + 1), "context": None, "dtype": "float32"}
        described |= {"source": "local", "revision": None, "sha256": "0" * 64, "weights": "none"}
        write_json(described, results / "models" / model / "model.json")
        write("models", f"{model}/vocabulary", rows(VOCABULARY, model=model))
        for task in size.names("task"):
            cell, names = f"{model}/{task}", {"model": model, "task": task}
            write("prompts", cell, rows(PROMPTS, **names))
            lens = []
            for first, last in size.blocks():
                block = names | {"first": first, "last": last}
                lens.append(rows(LENS, **block))
                write("lens", f"{cell}/{first}-{last}", lens[-1])
                found = rows(INTERVENTIONS, **block, split="dev")
                write("interventions", f"{cell}/{first}-{last}", found)
            # As in a sweep, the controls of one task only are tried from every start layer.
            everywhere = task == size.names("task")[0]
            middle = size.layers // 2
            first, last = (0, size.layers - 1) if everywhere else (middle, middle)
            found = rows(INTERVENTIONS, **names, first=first, last=last, split="test")
            write("selection", cell, found)
            write("stages", cell, stages_of(pa.concat_tables(lens)))
            vectors = [
                names | {"donor": donor, "layer": 7, "norm": 1.0, "cosine_to_mean": 0.9}
                | {"promoted": list(range(10)), "demoted": list(range(10, 20))}
                for donor in range(-1, 5)
            ]  # fmt: skip
            write("ovectors", cell, pa.Table.from_pylist(vectors, ovectors.schema(pa)))


def summary(results: Path, size: Size, memory: int) -> list[str]:
    """The arguments of stage summary on these results, as the workflow's rule gives them."""
    blocks = [f"{first}-{last}" for first, last in size.blocks()]
    tasks = size.names("task")
    values = {
        "results": results,
        "grid": json.dumps({model: blocks for model in size.names("model")}),
        "tasks": json.dumps({"all": tasks, "injected": tasks, "ablated": []}),
        "resamples": 1000,
        "memory": memory,
        "database": results / "summary.duckdb",
        "tables": results / "tables",
    }
    return ["summary", *(str(part) for key in values for part in (f"--{key}", values[key]))]


def measured(arguments: list[str]) -> str:
    """What `python -m vecsweep ARGUMENTS` took, in words; Problem if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "vecsweep", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Problem(f"vecsweep {arguments[0]} ended with exit code {process.returncode}")
    seconds, busy = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return f"{seconds:.1f} s, {busy:.1f} CPU s, peak {usage.ru_maxrss * 1024 / 1e6:.0f} MB"


def run(args):
    """Make the results, run summary and figures on them, print what they took."""
    import duckdb

    from vecsweep.figures import FIGURES

    size = Size(**{name: getattr(args, name) for name in Size._fields})
    if args.folder.exists():
        raise Problem(f"{args.folder} is there already; name a new folder")
    results = args.folder / "results"
    try:
        start = time.perf_counter()
        make(results, size)
        files = [path.stat().st_size for path in results.rglob("*.parquet")]
        lens = len([*(results / "lens").rglob("*.parquet")])
        print(
            f"{len(files)} Parquet files, {lens} of them of stage lens, {sum(files) / 1e9:.1f} GB, "
            f"made in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        took = measured(summary(results, size, args.memory))
        database = results / "summary.duckdb"
        written = database.stat().st_size / 1e9
        print(f"summary: {took} of {args.memory} MB; summary.duckdb {written:.1f} GB")
        with duckdb.connect(str(database), read_only=True) as connection:
            for table in ("lens", "top_tokens", "interventions", "stages", "curves", "effects"):
                count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                print(f"    {table}: {count:,} rows", flush=True)
        for name in FIGURES:
            pictures = [f"--{kind}={results / 'figures' / name}.{kind}" for kind in ("svg", "png")]
            command = ["figures", "--name", name, "--database", str(database), *pictures]
            print(f"figure {name}: {measured(command)}", flush=True)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


def main(argv=None) -> int:
    """Make, run, measure; bad input gives one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="vecsweep.tools.scale", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder, with 10 GB of room")
    parser.add_argument("--memory", type=int, default=8000, help="MB that the rule asks for [8000]")
    for name, default in Size._field_defaults.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=int, default=default, help=f"[{default}]")
    try:
        run(parser.parse_args(argv))
    except Problem as problem:
        print(f"vecsweep scale: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
