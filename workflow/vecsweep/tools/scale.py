"""What the summary takes of time and memory, on made-up results of a large sweep.

Writes results in the stages' own formats under FOLDER, by default 2,000 files of stage lens with
100 million rows for table `lens`; runs stage summary on them as the workflow's rule does, and then
each figure; prints wall time, peak memory and sizes; removes what it wrote.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from vecsweep import Problem, config, tables
from vecsweep.figures import FIGURES
from vecsweep.files import write_json
from vecsweep.layout import STAGES, SUMMARY, Cell
from vecsweep.stages.stages import stages_of
from vecsweep.sweep import Sweep
from vecsweep.terminal import at_least


class Size(NamedTuple):
    """How large the sweep is: every model has every task, layer and prompt."""

    models: int = 10
    tasks: int = 20
    layers: int = 50
    layers_per_job: int = 5
    prompts: int = 1250  # of each of the two sets
    novel: int = 100  # prompts of the interventions, half of them dev
    vocabulary: int = 50_000

    def sweep(self, results: Path) -> Sweep:
        """The grid of that size."""
        model = {"source": "local", "path": "none", "dtype": "float32"}
        model |= {"layers": self.layers, "layers_per_job": self.layers_per_job}
        grid = {
            "models": {f"model{number:02d}": model for number in range(self.models)},
            "tasks": {f"task{number:02d}": {} for number in range(self.tasks)},
            "ablations": {"tasks": []},
            "swaps": {"tasks": []},
        }
        return Sweep(config.checked(grid), results)


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

# A row a prompt, layer and sublayer; embedding and biases are two rows a prompt, without a layer.
ATTRIBUTION = """
SELECT $model AS model, $task AS task, prompt_set, prompt_id::INT AS prompt_id,
       layer::SMALLINT AS layer, sublayer,
       ((hash($model, $task, prompt_set, prompt_id, layer, sublayer) % 1000) / 250 - 2)::FLOAT
           AS contribution,
       prompt_id % 10 < 7 AS correct
FROM unnest(['attention', 'ffn', 'embedding', 'bias']) AS s(sublayer),
     unnest(range($layers) || [NULL]) AS l(layer),
     unnest(['abstractive', 'extractive']) AS p(prompt_set),
     unnest(range($prompts)) AS i(prompt_id)
WHERE (layer IS NULL) = (sublayer IN ('embedding', 'bias'))
ORDER BY layer, sublayer, prompt_set, prompt_id
"""

VOCABULARY = """
SELECT $model AS model, i::INT AS token_id, ' t' || i AS token FROM range($vocabulary) AS r(i)
"""

PROMPTS = """
SELECT $model AS model, $task AS task, 'Task ' || $task AS title, 'one-to-one' AS kind, prompt_set,
       prompt_id::INT AS prompt_id, 0::TINYINT AS template, NULL::VARCHAR AS "group",
       false AS out_of_domain,
       'argument ' || prompt_id AS argument, 'answer ' || prompt_id AS answer,
       'demonstration' AS demonstrations, []::INT[] AS shown_tokens, 'Q: argument ' || prompt_id || '?\\nA:' AS text,
       prompt_set = 'extractive' AS answer_in_prompt, [prompt_id::INT, 1, 2] AS token_ids,
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

# On dev every method from every start layer; on test each at one setting, with its vectors.
INTERVENTIONS = """
WITH settings AS (
    SELECT start_layer, method, vector
    FROM unnest(range($first, $last + 1)) AS l(start_layer),
         unnest(['o-vector', 'mean', 'difference', 'random', 'unrelated', 'zero']) AS m(method),
         unnest(if($split = 'dev', [0], if(method = 'random', range(20), [0]))) AS v(vector)
    WHERE $split = 'dev' OR start_layer = $layers // 2
),
drawn AS (
    SELECT *, hash($model, $task, start_layer, method, vector, prompt_id) AS seed
    FROM settings, unnest(range(if($split = 'dev', 0, 1), $novel, 2)) AS i(prompt_id)
)
SELECT $model AS model, $task AS task, $task AS ovector_task,
       if(method = 'o-vector', 0, NULL)::INT AS donor,
       if(method = 'random' AND $split = 'test', vector, NULL)::SMALLINT AS repeat,
       7::SMALLINT AS source_layer, start_layer::SMALLINT AS start_layer,
       ($layers - 1)::SMALLINT AS end_layer, 'replace' AS mode, 'all' AS position,
       1::FLOAT AS scale, method, 'in' AS domain, $split AS split, prompt_id::INT AS prompt_id,
       0::INT AS argument_rank_before, 3::INT AS argument_rank_after,
       20::INT AS answer_rank_before, (seed % 30)::INT AS answer_rank_after,
       (prompt_id % $vocabulary)::INT AS top_before,
       ((prompt_id + seed % 3) % $vocabulary)::INT AS top_after,
       1::SMALLINT AS accepted, 50::SMALLINT AS alternatives, 20::SMALLINT AS place_before,
       (seed % 30)::SMALLINT AS place_after, (seed % 7)::FLOAT AS own_lift,
       (seed % 5)::FLOAT AS others_lift
FROM drawn
ORDER BY start_layer, method, vector, prompt_id
"""


def make(sweep: Sweep, size: Size) -> None:
    """Write the results of a sweep of this size; the same size gives the same results."""
    connection = duckdb.connect(config={"threads": 1})

    def rows(query, **values):
        # DuckDB wants just the values that a query uses.
        values = size._asdict() | values
        used = {name: value for name, value in values.items() if f"${name}" in query}
        return connection.sql(query, params=used).to_arrow_table()

    def write(name, stage, cell, found, output="output"):
        path = sweep.outputs(STAGES[stage], cell)[output]
        notes = {"step_version": STAGES[stage].version, "shards": 1}
        if isinstance(found, pa.Table):
            found = found.select(tables.schema(name).names)
        tables.write(name, found, path, notes)

    for number, model in enumerate(sweep.models):
        described = {"model": model, "family": "gpt2", "parallel_blocks": False}
        described |= {"layers": size.layers, "d_model": 8, "vocabulary": size.vocabulary}
        described |= {"parameters": 10**8 * (number + 1), "context": None, "dtype": "float32"}
        described |= {"source": "local", "revision": None, "sha256": "0" * 64, "weights": "none"}
        write_json(described, sweep.outputs(STAGES["models"], Cell(model))["description"])
        text = rows(VOCABULARY, model=model)
        write("vocabulary", "models", Cell(model), text, "vocabulary")
        for task in sweep.tasks:
            cell, names = Cell(model, task), {"model": model, "task": task}
            write("prompts", "prompts", cell, rows(PROMPTS, **names))
            write("attribution", "attribution", cell, rows(ATTRIBUTION, **names))
            lens = []
            for layers in sweep.blocks(model):
                first, last = map(int, layers.split("-"))
                block, here = names | {"first": first, "last": last}, cell._replace(layers=layers)
                lens.append(rows(LENS, **block))
                write("lens", "lens", here, lens[-1])
                found = rows(INTERVENTIONS, **block, split="dev")
                write("interventions", "interventions", here, found)
            found = rows(INTERVENTIONS, **names, first=0, last=size.layers - 1, split="test")
            write("interventions", "selection", cell, found)
            write("stages", "stages", cell, stages_of(pa.concat_tables(lens)))
            vectors = [
                names | {"donor": donor, "layer": 7, "norm": 1.0, "cosine_to_mean": 0.9}
                | {"rule": "flips", "flips": 9, "argument": None, "answer": None}
                | {"promoted": list(range(10)), "demoted": list(range(10, 20))}
                for donor in (None, *range(5))
            ]  # fmt: skip
            write("ovectors", "ovectors", cell, vectors, "table")


def summary(sweep: Sweep, memory: int) -> list[str]:
    """The arguments of stage summary on these results, as the workflow's rule gives them."""
    settings = sweep.settings(SUMMARY, Cell())
    values = {"settings": json.dumps(settings), "results": sweep.results, "memory": memory}
    values |= sweep.outputs(SUMMARY, Cell())
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


def arguments(parser):
    parser.add_argument("folder", type=Path, help="a new folder, with 10 GB of room")
    parser.add_argument(
        "--memory", type=at_least(1), default=8000, help="MB that the rule asks for [8000]"
    )
    for name, default in Size._field_defaults.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=at_least(1), default=default, help=f"[{default}]")


def run(args):
    """Make the results, run summary and figures on them, print what they took."""
    size = Size(**{name: getattr(args, name) for name in Size._fields})
    if args.folder.exists():
        raise Problem(f"{args.folder} is there already; name a new folder")
    results = args.folder / "results"
    try:
        start = time.perf_counter()
        sweep = size.sweep(results)
        make(sweep, size)
        files = [path.stat().st_size for path in results.rglob("*.parquet")]
        lens = len([*(results / "lens").rglob("*.parquet")])
        print(
            f"{len(files)} Parquet files, {lens} of them of stage lens, {sum(files) / 1e9:.1f} GB, "
            f"made in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        took = measured(summary(sweep, args.memory))
        database = results / "summary.duckdb"
        written = database.stat().st_size / 1e9
        print(f"summary: {took} of {args.memory} MB; summary.duckdb {written:.1f} GB")
        with duckdb.connect(str(database), read_only=True) as connection:
            for table in ("lens", "top_tokens", "interventions", "stages", "curves", "effects"):
                count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                print(f"    {table}: {count:,} rows", flush=True)
        for name in FIGURES:
            pictures = [f"--{kind}={results / 'figures' / name}.{kind}" for kind in ("svg", "png")]
            command = [
                "figures",
                "--settings",
                json.dumps({"name": name}),
                "--database",
                str(database),
                *pictures,
            ]
            print(f"figure {name}: {measured(command)}", flush=True)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
