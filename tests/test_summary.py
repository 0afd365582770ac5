"""Stage summary: tables, curves and crossovers against direct computation on data by hand."""

import csv
import json
import random
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from conftest import command as stage_command
from conftest import main, run_stage
from vecsweep import tables
from vecsweep.files import read_table, write_table
from vecsweep.stages.summary import add_runs
from vecsweep.statistics import crossover_depths, resampled_means, wilson

LAYERS = {"a": 4, "b": 3}  # of each model; blocks of two layers
TASKS = ["towns", "verbs"]
PROMPTS = 12
INSIDE = 9  # prompts that are in domain, where some are not
SETS = ("abstractive", "extractive")
VOCABULARY = 50


def blocks(model):
    return {"a": ["0-1", "2-3"], "b": ["0-1", "2-2"]}[model]


def ranks(model, task, prompt_set, prompt_id, layer, site):
    """(argument's, answer's) rank: two thirds of the answers end on top, after the argument."""
    draw = random.Random(f"{model} {task} {prompt_set} {prompt_id} {layer} {site}")
    last = LAYERS[model] - 1
    argument, answer = draw.choice([0, 0, 1, 9, 10]), draw.choice([1, 3, 9, 10, 40])
    if layer == last:
        return 1 + argument, 0 if prompt_id % 3 else answer
    return argument, answer


def write(path, rows, schema=None):
    write_table(pa.Table.from_pylist(rows, schema=schema), path)


def lens_rows(model, task, layers):
    return [
        {
            "model": model,
            "task": task,
            "prompt_set": prompt_set,
            "prompt_id": prompt_id,
            "layer": layer,
            "site": site,
            "argument_token": 5,
            "answer_token": 6,
            "argument_rank": ranks(model, task, prompt_set, prompt_id, layer, site)[0],
            "answer_rank": ranks(model, task, prompt_set, prompt_id, layer, site)[1],
            "argument_probability": 0.25,
            "answer_probability": 0.125,
            # Padded vocabularies have tokens without a text.
            "top_token": [layer, VOCABULARY + 3],
            "top_probability": [0.5, 0.25],
        }
        for layer in layers
        for site in ("resid_mid", "resid_post")
        for prompt_set in SETS
        for prompt_id in range(PROMPTS)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with a full grid by hand, and files that belong to no grid."""
    folder = tmp_path_factory.mktemp("summary") / "results"
    for model in [*LAYERS, "stray"]:
        LAYERS.setdefault(model, 3)
        described = {
            "model": model, "family": "gpt2", "parallel_blocks": False, "layers": LAYERS[model],
            "d_model": 8, "vocabulary": VOCABULARY, "parameters": 1000, "context": None,
            "dtype": "float32", "source": "local", "revision": None, "sha256": "0" * 64,
            "weights": "x", "step_version": 1,
        }  # fmt: skip
        (folder / "models" / model).mkdir(parents=True)
        (folder / "models" / model / "model.json").write_text(json.dumps(described))
        words = [{"model": model, "token_id": i, "token": f" t{i}"} for i in range(VOCABULARY)]
        write(folder / "models" / model / "vocabulary.parquet", words)
        for task in [*TASKS, "stray"]:
            fill(folder, model, task)
    # A block of an older layers_per_job, with rows that would count twice.
    write(folder / "lens" / "a" / "towns" / "0-2.parquet", lens_rows("a", "towns", range(3)))
    del LAYERS["stray"]
    return folder


def fill(folder, model, task):
    rows = [
        {
            "model": model, "task": task, "prompt_set": prompt_set, "prompt_id": prompt_id,
            "argument": f"x{prompt_id}", "answer": f"y{prompt_id}", "demonstrations": "",
            "shown_tokens": [], "text": "...", "token_ids": [1, 2], "argument_token": 5, "answer_tokens": [6],
            "argument_length": 1, "answer_length": 1, "first_token_letters": 3,
            "stratum": "argument one, answer one", "split": "dev", "template": 0,
            "answer_in_prompt": False, "out_of_domain": False,
            "dropped": None if prompt_id < PROMPTS else "over max_prompts: 12",
        }
        for prompt_set in (*SETS, "novel")
        for prompt_id in range(PROMPTS + 2)
    ]  # fmt: skip
    write(folder / "prompts" / model / f"{task}.parquet", rows, tables.schema("prompts"))
    parts = [(layer, part) for layer in range(LAYERS[model]) for part in ("attention", "ffn")]
    rows = [
        {
            "model": model, "task": task, "prompt_set": prompt_set, "prompt_id": prompt_id,
            "layer": layer, "sublayer": part, "contribution": 0.0, "correct": True,
        }
        for layer, part in [*parts, (None, "embedding"), (None, "bias")]
        for prompt_set in SETS
        for prompt_id in range(PROMPTS)
    ]  # fmt: skip
    tables.write("attribution", rows, folder / "attribution" / model / f"{task}.parquet")
    named = blocks(model) if model != "stray" else ["0-2"]
    files = [folder / "lens" / model / task / f"{block}.parquet" for block in named]
    for path, block in zip(files, named):
        first, last = map(int, block.split("-"))
        write(path, lens_rows(model, task, range(first, last + 1)))
    output = folder / "stages" / model / f"{task}.parquet"
    run_stage("stages", lens=files, output=output)


def command(results, target, resamples=200):
    settings = {
        "grid": {model: [layers, 2] for model, layers in LAYERS.items()},
        "tasks": {"all": TASKS, "injected": [], "ablated": [], "swapped": []},
        "resamples": resamples,
        "top_k": 5,
    }
    paths = {"results": results, "database": target / "summary.duckdb"}
    return stage_command("summary", settings=settings, **paths, tables=target / "tables")


def summarize(results, target, resamples=200):
    assert main([str(part) for part in command(results, target, resamples)]) == 0
    return target


@pytest.fixture(scope="module")
def summary(results, tmp_path_factory):
    return summarize(results, tmp_path_factory.mktemp("made"))


@pytest.fixture
def query(summary):
    with duckdb.connect(str(summary / "summary.duckdb"), read_only=True) as database:
        yield lambda sql: database.execute(sql).fetchall()


def reciprocal_ranks(model, task, prompt_set, target, subset, prompts=PROMPTS):
    """[prompts, layers] of reciprocal ranks in the stream that leaves each layer."""
    last = LAYERS[model] - 1
    return np.array(
        [
            [
                1 / (1 + ranks(model, task, prompt_set, number, layer, "resid_post")[target])
                for layer in range(last + 1)
            ]
            for number in range(prompts)
            if subset == "all" or ranks(model, task, prompt_set, number, last, "resid_post")[1] == 0
        ]
    )


CELLS = [(m, t, s, u) for m in LAYERS for t in TASKS for s in SETS for u in ("all", "correct")]


def test_the_grid_and_nothing_else(query):
    cells = [(model, task) for model in LAYERS for task in TASKS]
    assert query("SELECT model, layers FROM models ORDER BY ALL") == [("a", 4), ("b", 3)]
    for table in ("prompts", "stages", "lens", "top_tokens", "curves", "crossovers"):
        found = query(f"SELECT DISTINCT model, task FROM {table} ORDER BY ALL")
        assert found == sorted(cells), table
    count = {
        table: query(f"SELECT count(*) FROM {table}")[0][0]
        for table in ("prompts", "stages", "lens")
    }
    layers = sum(LAYERS.values()) * len(TASKS)
    assert count == {
        "prompts": len(cells) * 3 * (PROMPTS + 2),
        "stages": len(cells) * 2 * PROMPTS,
        "lens": layers * 2 * 2 * PROMPTS * 2,
    }
    key = "model, task, prompt_set, prompt_id, layer, site, target"
    assert query(f"SELECT count(DISTINCT ({key})) FROM lens") == [(count["lens"],)]
    assert {m for (m,) in query("SELECT DISTINCT model FROM vocabularies")} == set(LAYERS)


def test_lens(query):
    rows = query(
        "SELECT model, task, prompt_set, prompt_id, layer, site, target, token_id, rank, "
        "reciprocal_rank, probability FROM lens"
    )
    for *key, target, token, rank, reciprocal, probability in rows:
        which = ("argument", "answer").index(target)
        assert rank == ranks(*key)[which]
        assert reciprocal == pytest.approx(1 / (1 + rank), rel=1e-6)
        assert (token, probability) == ((5, 0.25), (6, 0.125))[which]


def test_top_tokens_keep_those_without_a_text(query):
    rows = query(
        "SELECT layer, position, token_id, token, probability, count(*) FROM top_tokens "
        "WHERE model = 'a' GROUP BY ALL ORDER BY ALL"
    )
    count = len(TASKS) * 2 * 2 * PROMPTS
    expected = []
    for layer in range(4):
        expected.append((layer, 0, layer, f" t{layer}", 0.5, count))
        expected.append((layer, 1, VOCABULARY + 3, None, 0.25, count))
    assert rows == expected


def test_prompts_say_what_was_answered(query):
    rows = query("SELECT model, task, prompt_set, prompt_id, correct, dropped FROM prompts")
    for model, task, prompt_set, number, correct, dropped in rows:
        if number >= PROMPTS:
            assert dropped and correct is None
        elif prompt_set == "novel":
            assert correct is None  # never run by itself
        else:
            last = ranks(model, task, prompt_set, number, LAYERS[model] - 1, "resid_post")
            assert correct == (last[1] == 0)


@pytest.mark.parametrize("model, task, prompt_set, subset", CELLS)
def test_curves(query, model, task, prompt_set, subset):
    rows = query(
        "SELECT target, layer, depth, prompts, reciprocal_rank, low, high, top_1, top_10 "
        "FROM curves "
        f"WHERE (model, task, prompt_set, subset) = {(model, task, prompt_set, subset)} "
        "ORDER BY target DESC, layer"
    )
    assert [row[:2] for row in rows] == [
        (target, layer) for target in ("argument", "answer") for layer in range(LAYERS[model])
    ]
    for target, layer, depth, count, mean, low, high, top_1, top_10 in rows:
        which = ("argument", "answer").index(target)
        values = reciprocal_ranks(model, task, prompt_set, which, subset)[:, layer]
        assert count == len(values) and (count == PROMPTS) == (subset == "all")
        assert depth == pytest.approx((layer + 1) / LAYERS[model])
        assert mean == pytest.approx(values.mean(), rel=1e-6)
        assert top_1 == pytest.approx((values == 1).mean())
        assert top_10 == pytest.approx((values > 1 / 10.5).mean())  # ranks 0 to 9
        assert low <= mean + 1e-9 and mean - 1e-9 <= high
        assert low < high
        # About what the normal approximation says; where all are alike, Wilson's of a share.
        width = 2 * 1.96 * values.std() / len(values) ** 0.5
        if values.std() == 0:
            width = np.ptp(wilson(mean, count))
        assert high - low == pytest.approx(width, rel=0.35, abs=1e-6)


@pytest.mark.parametrize("model, task, prompt_set, subset", CELLS)
def test_crossovers(query, model, task, prompt_set, subset):
    ((count, depth, low, high, uncrossed, peak, peak_layer, argument_end, answer_end),) = query(
        "SELECT prompts, depth, low, high, uncrossed, argument_peak, argument_peak_layer, argument_end, "
        "answer_end FROM crossovers "
        f"WHERE (model, task, prompt_set, subset) = {(model, task, prompt_set, subset)}"
    )
    argument, answer = (
        reciprocal_ranks(model, task, prompt_set, k, subset).mean(0) for k in (0, 1)
    )
    ahead = [layer for layer in range(LAYERS[model]) if (answer > argument)[layer:].all()]
    assert count == len(reciprocal_ranks(model, task, prompt_set, 0, subset))
    crossed = ahead and ahead[0] > 0
    assert depth == (pytest.approx((ahead[0] + 1) / LAYERS[model]) if crossed else None)
    assert (peak, peak_layer) == (pytest.approx(argument.max(), rel=1e-6), argument.argmax())
    assert argument_end == pytest.approx(argument[-1], rel=1e-6)
    assert answer_end == pytest.approx(answer[-1], rel=1e-6)
    assert (uncrossed > 0.975) <= (not crossed)
    if crossed:
        # An end is missing where more than a fortieth of the resamples crosses nothing there.
        assert (low or 0) <= depth <= (high or 1)
        assert uncrossed > 0.025 or (low and high)


@pytest.mark.parametrize(
    "argument, answer, depth",
    [
        ([0.9, 0.8, 0.1, 0.1], [0.0, 0.1, 0.2, 0.9], 3 / 4),
        ([0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], -np.inf),  # ahead from the start
        ([0.3, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], 2 / 4),
        ([0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1], np.inf),
        ([0.1, 0.5, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], 3 / 4),  # ahead, behind, ahead for good
        ([0.1, 0.1, 0.1, 0.5], [0.2, 0.2, 0.2, 0.2], np.inf),  # behind at the end
        ([0.1, 0.1, 0.1, 0.1], [0.0, 0.1, 0.2, 0.2], 3 / 4),  # equal is not ahead
        ([0.1, 0.1, 0.1, 0.2], [0.0, 0.0, 0.0, 0.3], 4 / 4),
    ],
)
def test_crossover_depth(argument, answer, depth):
    (found,) = crossover_depths(np.array([[argument, answer]]))
    assert found == depth


def test_bootstrap():
    values = np.random.default_rng(1).random((400, 2, 3))
    drawn = resampled_means(values, 2000, seed=0)
    assert drawn.shape == (2000, 2, 3)
    np.testing.assert_array_equal(drawn, resampled_means(values, 2000, seed=0))
    assert not np.array_equal(drawn, resampled_means(values, 2000, seed=1))
    # Unbiased, with the spread of a mean, and whole prompts are drawn: layers stay together.
    np.testing.assert_allclose(drawn.mean(0), values.mean(0), atol=2e-3)
    np.testing.assert_allclose(drawn.std(0), values.std(0) / 20, rtol=0.1)
    same = np.repeat(values[:, :1, :1], 3, axis=2)
    same = resampled_means(same, 50, seed=0)
    np.testing.assert_allclose(same, same[:, :, :1].repeat(3, axis=2))

    def width(count):
        low, high = np.quantile(resampled_means(values[:count], 2000, 0), [0.025, 0.975], axis=0)
        return (high - low).mean()

    assert width(10) > 1.6 * width(40) > 2.5 * width(160)
    constant = resampled_means(np.full((7, 2, 3), 0.3), 100, 0)
    np.testing.assert_allclose(constant, 0.3)
    assert len(resampled_means(values[:1], 100, 0)) == 100


def test_same_results_same_summary(results, summary, tmp_path):
    again = summarize(results, tmp_path)

    def content(folder):
        with duckdb.connect(str(folder / "summary.duckdb"), read_only=True) as database:
            names = database.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
            return {
                n: database.execute(f"SELECT * FROM {n} ORDER BY ALL").fetchall() for (n,) in names
            }

    assert content(again) == content(summary)
    names = sorted(path.name for path in (summary / "tables").iterdir())
    assert names == sorted(path.name for path in (again / "tables").iterdir())
    for name in names:
        assert (again / "tables" / name).read_text() == (summary / "tables" / name).read_text()


def read(summary, name):
    with open(summary / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_tables(summary, query):
    patterns = {
        (r["model"], r["task"], r["prompt_set"]): r
        for r in read(summary, "patterns")
        if r["subset"] == "all"
    }
    assert patterns.keys() == {(m, t, s) for m in LAYERS for t in TASKS for s in SETS}
    for (model, task, prompt_set), row in patterns.items():
        where = f"WHERE (model, task, prompt_set) = ('{model}', '{task}', '{prompt_set}')"
        found = query(f"SELECT pattern, function_site FROM stages {where}")
        right = [site for pattern, site in found if pattern != "incorrect"]
        assert int(row["prompts"]) == len(found) == PROMPTS
        assert float(row["correct"]) == pytest.approx(len(right) / PROMPTS)
        for column, value in (("argument_function", "argument-function"), ("direct", "direct")):
            share = [pattern for pattern, _ in found].count(value) / PROMPTS
            assert float(row[column]) == pytest.approx(share)
        assert float(row["by_ffn"]) == pytest.approx(right.count("ffn") / len(right))
        assert float(row["by_attention"]) == pytest.approx(right.count("attention") / len(right))
    counts = {
        (r["model"], r["task"], r["outcome"]): int(r["pairs"])
        for r in read(summary, "prompt_counts")
    }
    assert counts == {
        (model, task, outcome): pairs
        for model in LAYERS
        for task in TASKS
        for outcome, pairs in (("kept", PROMPTS), ("over max_prompts: 12", 2))
    }


@pytest.mark.parametrize("spoil", ["missing", "cut"])
@pytest.mark.parametrize("file", ["lens/b/verbs/2-2.parquet", "stages/a/towns.parquet"])
def test_damaged_result_is_named(results, tmp_path, refused, file, spoil):
    path = results / file
    whole = path.read_bytes()
    try:
        path.unlink() if spoil == "missing" else path.write_bytes(whole[:-30])
        line = refused(command(results, tmp_path))
    finally:
        path.write_bytes(whole)
    assert file in line and len(line) < 400
    assert not list(tmp_path.iterdir())  # no database, not even a hidden half of one


@pytest.fixture(scope="module")
def inside(results, tmp_path_factory):
    """query(sql) of the same sweep with prompts out of domain, which would change every mean."""
    folder = tmp_path_factory.mktemp("outside")
    copied = shutil.copytree(results, folder / "results")
    for path in copied.glob("prompts/*/*.parquet"):
        rows = read_table(path).to_pylist()
        for row in rows:
            row["out_of_domain"] = row["prompt_id"] >= INSIDE
            row["answer_tokens"] = [[6, 7], [8, 9]][row["prompt_id"] % 2]
        write(path, rows, tables.schema("prompts"))
    for path in copied.glob("attribution/*/*.parquet"):
        rows = read_table(path).to_pylist()
        for row in rows:
            number = row["prompt_id"]
            row |= {"contribution": float(number), "correct": number % 3 > 0}
        tables.write("attribution", rows, path)
    summarize(copied, folder)
    with duckdb.connect(str(folder / "summary.duckdb"), read_only=True) as database:
        yield lambda sql: database.execute(sql).fetchall()


@pytest.mark.parametrize("model, task, prompt_set, subset", CELLS)
def test_curves_and_crossovers_are_of_prompts_in_domain(inside, model, task, prompt_set, subset):
    where = f"WHERE (model, task, prompt_set, subset) = {(model, task, prompt_set, subset)}"
    argument, answer = (
        reciprocal_ranks(model, task, prompt_set, k, subset, INSIDE) for k in (0, 1)
    )
    rows = inside(
        f"SELECT prompts, reciprocal_rank FROM curves {where} ORDER BY target DESC, layer"
    )
    assert {count for count, _ in rows} == {len(argument)}
    means = [*argument.mean(0), *answer.mean(0)]
    assert [mean for _, mean in rows] == pytest.approx(means, rel=1e-6)
    (row,) = inside(f"SELECT prompts, argument_end, answer_end FROM crossovers {where}")
    ends = [argument[:, -1].mean(), answer[:, -1].mean()]
    assert row == pytest.approx((len(argument), *ends), rel=1e-6)


def test_patterns_are_of_prompts_in_domain(inside):
    rows = inside(
        "SELECT model, task, prompt_set, prompts, correct, chance FROM patterns"
        " WHERE subset = 'all'"
    )
    assert len(rows) == len(CELLS) / 2
    for model, task, prompt_set, count, correct, chance in rows:
        right = reciprocal_ranks(model, task, prompt_set, 1, "correct", INSIDE)
        assert (count, correct) == (INSIDE, pytest.approx(len(right) / INSIDE))
        assert chance == 0.5  # each accepts two of the task's four answers


def test_attribution_is_of_prompts_in_domain_answered_correctly(inside):
    found = inside("SELECT DISTINCT prompts, contribution FROM attribution_bands")
    assert found == [(6, (1 + 2 + 4 + 5 + 7 + 8) / 6)]


def test_a_lens_is_of_the_machine_that_made_its_states(tmp_path):
    path = tmp_path / "lens" / "a" / "towns" / "0-1.parquet"
    write_table(pa.table({"layer": [0]}), path, {"states_host": "first", "host": "second"})
    with duckdb.connect() as database:
        database.execute(
            "CREATE TABLE models AS SELECT 'a' AS model, '' AS dtype, '' AS revision, '' AS sha256"
        )
        add_runs(database, tmp_path, {"lens": [str(path)]})
        assert database.execute("SELECT stage, host FROM runs").fetchall() == [("lens", "first")]
