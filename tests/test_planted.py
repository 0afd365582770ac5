"""Ground truth: the whole workflow on models built by hand, see `planted`.

The models with the function in an FFN, in every form, and GPT-2's twin with it in attention go
through Snakemake; the attention twins of the other forms through the same stages one by one.
"""

import subprocess
from types import SimpleNamespace

import duckdb
import pandas as pd
import pytest
import torch
import transformers
import yaml

import planted
import warm
from conftest import REPO, describe, main, run_stage
from test_ovectors import assert_no_vectors, chain
from test_swaps import chain as swap_chain
from vecsweep import effects
from vecsweep.engine import load
from vecsweep.engine.plans import Plan, run_plans
from vecsweep.engine.readout import Readout
from vecsweep.files import Tensors, read_json, read_table
from vecsweep.stages import ablations
from vecsweep.statistics import chance_among
from vecsweep.tasks.rows import NOVEL, all_answers, kept_rows

FFN_MODELS = [f"{form}-ffn" for form in planted.FORMS]
TWIN = "gpt2-attention"
MODELS = [*FFN_MODELS, TWIN]
DONORS = 4
INSIDE = planted.COUNT - planted.OUTSIDE
# Pairs of each split in the domain, as stage prompts deals 18 distinct ones out.
TRAIN, DEV, TEST = 7, 4, 7
EVERY = planted.COUNT


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """One run of the workflow: the results folder, a query of the database, and the vectors."""
    folder = tmp_path_factory.mktemp("planted")
    vectors = {}
    config = {
        "models": {},
        "tasks": {"towns": {"file": str(planted.write_task(folder / "tasks"))}},
        "ovectors": {"per_layer": DONORS},
    }
    for name in MODELS:
        path = folder / "weights" / name
        vectors[name] = planted.save(path, *name.split("-"))
        config["models"][name] = {
            "source": "local",
            "path": str(path),
            "layers": planted.LAYERS,
            "dtype": "float32",
        }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake = ["snakemake", "results/summary.duckdb", "--cores", "2"]
    snakemake += ["--snakefile", REPO / "Snakefile", "--directory", folder]
    snakemake += ["--configfile", folder / "config.yaml"]
    done = subprocess.run(
        list(map(str, snakemake)),
        env=warm.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    results = folder / "results"
    with duckdb.connect(str(results / "summary.duckdb"), read_only=True) as database:
        yield SimpleNamespace(
            results=results,
            vectors=vectors,
            query=lambda sql, *values: database.execute(sql, values).fetchall(),
        )


def built_stages(site, form="gpt2"):
    """The stages of all prompts of a model, by prompt set; the copying head is in block 1."""
    # The argument still stands between attention and FFN of the layer whose FFN flips it, where
    # there is a state between them.
    last = planted.LAYER - (site == "attention" or form == "gptj")
    return {
        "abstractive": ("argument-function", 0, last, planted.LAYER, site, 2),
        "extractive": ("argument-function", 0, 0, 1, "attention", 3),
    }


@pytest.mark.parametrize("name", MODELS)
def test_layer_and_site_are_found(sweep, name):
    # Every prompt is answered, since no group is 'incorrect'.
    found = sweep.query(
        """SELECT prompt_set, pattern, argument_first, argument_last, function_layer,
                  function_site, saturation_layers, count(*)
           FROM stages WHERE model = ? GROUP BY ALL""",
        name,
    )
    form, site = name.split("-")
    built = built_stages(site, form)
    assert sorted(found) == [(key, *built[key], EVERY) for key in sorted(built)]


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_is_found(sweep, name):
    file = Tensors(sweep.results / "ovectors" / name / "towns.safetensors")
    vectors, planted_one = file["vectors"], sweep.vectors[name][None]
    assert vectors.shape == (DONORS + 1, planted.D_MODEL)  # the mean of all donors is the last
    assert torch.cosine_similarity(vectors, planted_one).min() > 0.99
    # All donors' vectors are one direction.
    assert abs(torch.cosine_similarity(file["directions"][:1], planted_one)) > 0.99
    assert file.metadata["eligible"] == str(TRAIN)
    rows = read_table(sweep.results / "ovectors" / name / "towns.parquet").to_pylist()
    assert {row["layer"] for row in rows} == {planted.LAYER} and rows[-1]["donor"] is None
    pairs = dict(zip(planted.ARGUMENTS[:INSIDE], planted.ANSWERS))
    assert all(pairs[row["argument"]] == row["answer"] for row in rows[:-1])
    assert {(row["rule"], row["flips"]) for row in rows} == {("flips", TRAIN)}
    # Read out by itself it says "an answer", and "no argument", of no pair in particular.
    words = planted.words()
    for row in rows:
        assert {words[token] for token in row["promoted"]} <= set(planted.ANSWERS)
        assert {words[token] for token in row["demoted"]} <= set(planted.ARGUMENTS)


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_works_from_every_start_layer(sweep, name):
    found = sweep.query(
        """SELECT method, start_layer, end_layer, mode, min(1 / (1 + rank_after)),
                  count(DISTINCT prompt_id)
           FROM interventions
           WHERE model = ? AND split = 'dev' AND target = 'answer' AND method IN ('o-vector', 'mean')
           GROUP BY ALL""",
        name,
    )
    last = planted.LAYERS - 1
    assert sorted(found) == sorted(
        (method, start, end, mode, 1, DEV)
        for method in ("o-vector", "mean")
        for start in range(planted.LAYERS)
        for end in {start, last}
        for mode in ("add", "replace")
    )


def outcomes(sweep, name, *methods):
    """The outcomes on test of some methods, (domain, prompt_id, target, before, after) rows."""
    listed = ", ".join(f"'{method}'" for method in methods)
    return sweep.query(
        f"""SELECT domain, prompt_id, target, rank_before, rank_after FROM interventions
            WHERE model = ? AND split = 'test' AND method IN ({listed})""",
        name,
    )


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_flips_every_argument(sweep, name):
    # One donor's vector, the mean, the other donors', one neuron and one direction alone.
    for method in ("o-vector", "mean", "donor", "neurons_1", "directions_1"):
        rows = outcomes(sweep, name, method)
        seen = dict(
            sweep.query(
                """SELECT split, list(DISTINCT prompt_id) FROM prompts
                   WHERE model = ? AND NOT out_of_domain GROUP BY split""",
                name,
            )
        )
        assert {split: len(ids) for split, ids in seen.items()} == {
            "train": TRAIN, "dev": DEV, "test": TEST,
        }  # fmt: skip
        expected = {("in", i) for i in seen["test"]} | {("out", i) for i in range(INSIDE, EVERY)}
        shown = sweep.query(SHOWN, name)
        assert shown
        expected -= {(domain, i) for (i,) in shown for domain in ("in", "out")}
        assert {row[:2] for row in rows} == expected
        for _, _, target, before, after in rows:
            if target == "argument":
                assert before == 0 and after > 0
            else:
                assert before > 0 and after == 0


SHARED = """
    SELECT count(*), count(*) FILTER (list_has_any(p.answer_tokens, d.answer_tokens)),
           count(*) FILTER (p.argument = d.argument), count(*) FILTER (d.split != 'train')
    FROM interventions AS i
    JOIN prompts AS p ON (i.model, i.task, i.prompt_id) = (p.model, p.task, p.prompt_id)
    JOIN ovectors AS o ON (i.model, i.ovector_task) = (o.model, o.task)
    JOIN prompts AS d ON (o.model, o.task, o.donor) = (d.model, d.task, d.prompt_id)
    WHERE p.prompt_set = 'novel' AND d.prompt_set = 'novel'
"""


# What the donors' prompts show is in no prompt either.
SHOWN = """
    SELECT DISTINCT s.prompt_id
    FROM ovectors AS o
    JOIN prompts AS d ON (o.model, o.task, o.donor) = (d.model, d.task, d.prompt_id)
    JOIN prompts AS s ON (s.model, s.task) = (d.model, d.task)
        AND list_contains(string_split(d.demonstrations, '|'), s.argument)
    WHERE o.model = ?
"""


def test_no_prompt_shares_an_answer_with_a_donor(sweep):
    ((pairs, answers, arguments, others),) = sweep.query(SHARED)
    assert pairs > 1000 and (answers, arguments, others) == (0, 0, 0)
    for name in FFN_MODELS:
        reported = {number for _, number, *_ in outcomes(sweep, name, "o-vector")}
        assert reported and not reported & {number for (number,) in sweep.query(SHOWN, name)}


@pytest.mark.parametrize("name", FFN_MODELS)
def test_controls_change_no_prompt(sweep, name):
    # The argument is the top token before and after.
    for method in ("random", "zero", "unrelated"):
        rows = [row for row in outcomes(sweep, name, method) if row[2] == "argument"]
        prompts = {row[:2] for row in rows}
        assert prompts == {row[:2] for row in outcomes(sweep, name, "o-vector")}
        assert {row[3:] for row in rows} == {(0, 0)}


@pytest.mark.parametrize("form", planted.FORMS)
@pytest.mark.parametrize("site, carries", [("ffn", "argument"), ("class", "class")])
def test_promoting_a_class_is_told_from_the_own_answer(form, site, carries, tmp_path):
    """The same vector, put into models whose answers do and do not hang on the argument."""
    vector = planted.save(tmp_path / "weights", form, site)
    made = describe("gpt2", tmp_path / "weights", tmp_path / "described", layers=planted.LAYERS)
    assert main(made.arguments) == 0
    prompts = tmp_path / "prompts.parquet"
    shown = {"demonstrations": 1, "seed": 0, "max_prompts": None}
    task = planted.write_task(tmp_path)
    run_stage("prompts", model=made.description, task=task, settings=shown, output=prompts)
    rows = kept_rows(prompts, NOVEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    last = planted.LAYERS - 1
    plan = Plan(last, last, "replace", "all", vector[None], [{}])
    readout = Readout.load(made.readout)
    found = run_plans(load.engine_of(model, 64), readout, rows, [plan], all_answers(rows))
    table = pd.DataFrame(found)
    for when in ("before", "after"):
        table[f"reciprocal_rank_{when}"] = 1 / (1 + table[f"answer_rank_{when}"])
        table[f"among_{when}"] = 1 / (1 + table[f"place_{when}"])
    table["rise"] = table.reciprocal_rank_after - table.reciprocal_rank_before
    table["among_chance"] = [
        chance_among(*pair) for pair in zip(table.accepted, table.alternatives)
    ]
    missing = {*effects.SETTING, "vector", *effects.SHARES} - set(table.columns)
    row = effects.row(table.assign(**dict.fromkeys(missing, 0)), None, 500)
    # Both bring answers up, and lift the others' as much as the own.
    assert row["prompts"] == EVERY and row["rise_low"] > 0
    assert row["own_lift"] == pytest.approx(row["others_lift"], rel=0.1) and row["own_lift"] > 1
    assert row["transfer"] == carries
    assert row["among_after"] == 1 or site == "class"


def right(site, prompt_set, sublayer, removed) -> bool:
    """Whether a model answers as built, without a sublayer at some blocks."""
    if sublayer == "ffn":
        return prompt_set == "extractive" or site == "attention" or planted.LAYER not in removed
    applied = site == "ffn" or planted.LAYER not in removed
    copied = prompt_set == "extractive" and 1 not in removed
    return 0 not in removed and (applied or copied)


@pytest.mark.parametrize("name", MODELS)
def test_ablations_come_out_as_built(sweep, name):
    found = sweep.query(
        """SELECT prompt_set, sublayer, "order", step, min(correct), max(correct), count(*)
           FROM ablations WHERE model = ? AND value = 'zero' GROUP BY ALL""",
        name,
    )
    assert len(found) == 2 * 4 * 7
    for prompt_set, sublayer, order, step, worst, best, count in found:
        removed = ablations.removed_layers(planted.LAYERS, step, order, 0)
        expected = right(name.split("-")[1], prompt_set, sublayer, removed)
        assert (worst, best, count) == (expected, expected, EVERY), (sublayer, order, removed)


def test_figure_7(sweep):
    # Written out: FFNs removed from the top down, a sixth of 4 blocks at a time.
    found = sweep.query("""SELECT prompt_set, list(accuracy ORDER BY step) FROM (
               SELECT prompt_set, step, avg(correct::INT) AS accuracy FROM ablations
               WHERE model = 'gpt2-ffn' AND (sublayer, value, "order") = ('ffn', 'zero', 'top')
               GROUP BY ALL)
           GROUP BY ALL ORDER BY ALL""")
    assert found == [("abstractive", [1, 1, 0, 0, 0, 0, 0]), ("extractive", [1] * 7)]


def test_attention_gives_no_vector(sweep):
    results = sweep.results
    made = SimpleNamespace(
        vectors=results / "ovectors" / TWIN / "towns.safetensors",
        tables=[
            results / "ovectors" / TWIN / "towns.parquet",
            results / "interventions" / TWIN / "towns" / "0-3.parquet",
            results / "selection" / TWIN / "towns.parquet",
        ],
    )
    assert_no_vectors(made, planted.D_MODEL)
    # The other models' rows are in the database, this one's are nowhere.
    models = sweep.query("SELECT DISTINCT model FROM interventions ORDER BY model")
    assert models == [(name,) for name in sorted(FFN_MODELS)]


@pytest.mark.parametrize("form", ["gptj", "bloom"])
def test_attention_gives_no_vector_in_other_forms(form, tmp_path):
    planted.save(tmp_path / "weights", form, "attention")
    task = planted.write_task(tmp_path / "tasks")
    made = chain(
        tmp_path / "results", form, tmp_path / "weights", task, planted.LAYERS, max_prompts=8
    )
    columns = ["pattern", "argument_first", "argument_last", "function_layer", "function_site"]
    for row in read_table(made.stages).to_pylist():
        built = built_stages("attention", form)[row["prompt_set"]]
        assert tuple(row[c] for c in [*columns, "saturation_layers"]) == built
    assert_no_vectors(made, planted.D_MODEL)
    for row in read_table(made.ablations).to_pylist():
        removed = range(planted.LAYERS - row["removed_layers"], planted.LAYERS)
        assert row["correct"] == right("attention", row["prompt_set"], row["sublayer"], removed)


# Function or fact


TWINS = {"ffn": "function", "lookup": "fact"}
RECALLING = [(form, site) for form in planted.FORMS for site in TWINS]


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """A query of the database of all forms, with the vector and with a look-up in its place."""
    folder = tmp_path_factory.mktemp("exchanged")
    results, task = folder / "results", planted.write_task(folder / "tasks")
    for form, site in RECALLING:
        planted.save(folder / form / site, form, site)
        swap_chain(results, f"{form}-{site}", folder / form / site, task, planted.LAYERS)
    assert read_json(results / "models" / "bloom-lookup" / "model.json")["family"] == "bloom"
    tasks = {"all": ["towns"], "injected": [], "ablated": [], "swapped": ["towns"]}
    run_stage(
        "summary",
        results=results,
        grid={f"{form}-{site}": [planted.LAYERS, planted.LAYERS] for form, site in RECALLING},
        tasks=tasks,
        top_k=5,
        resamples=500,
        database=results / "summary.duckdb",
        tables=results / "tables",
    )
    with duckdb.connect(str(results / "summary.duckdb"), read_only=True) as database:
        yield lambda sql, *values: database.execute(sql, values).fetchall()


@pytest.mark.parametrize("form, site", RECALLING)
def test_function_and_fact_are_told_apart(exchanged, form, site):
    name = f"{form}-{site}"
    # Both look the same to all that does not exchange: the FFN of that layer puts the answer on top.
    found = exchanged(
        """SELECT DISTINCT pattern, argument_first, argument_last, function_layer, function_site,
                  saturation_layers
           FROM stages WHERE model = ? AND prompt_set = 'abstractive'""",
        name,
    )
    assert found == [built_stages("ffn", form)["abstractive"]]
    found = exchanged(
        """SELECT sublayer, layers, pairs, prompts, own_dropped, verdict
           FROM swap_verdicts WHERE model = ?""",
        name,
    )
    # Attention does nothing there, and is not taken for a function; without the FFN no answer comes.
    same = (str(planted.LAYER), 90, 10)
    assert found == [("attention", *same, 1, "idle"), ("ffn", *same, 0, TWINS[site])]


@pytest.mark.parametrize("form, site", RECALLING)
def test_every_pair_comes_out_as_built(exchanged, form, site):
    found = exchanged(
        """SELECT sublayer, list(own ORDER BY layer), list(others ORDER BY layer)
           FROM swap_shares WHERE model = ? GROUP BY ALL ORDER BY ALL""",
        f"{form}-{site}",
    )
    nobody, everybody = [0] * planted.LAYERS, [1] * planted.LAYERS
    looked_up = [int(site == "lookup" and i == planted.LAYER) for i in range(planted.LAYERS)]
    # Block 0's attention says the argument, and with it whose answer the function gives.
    by_attention = [1, 0, 0, 0]
    assert found == [
        ("attention", [1 - x for x in by_attention], by_attention),
        ("ffn", [1 - x for x in looked_up], looked_up),
        ("state", nobody, everybody),
    ]


@pytest.mark.parametrize("form, site", RECALLING)
def test_attribution_finds_the_layer(exchanged, form, site):
    found = exchanged(
        """SELECT contribution, low, high, sublayer, layer FROM attribution_shares
           WHERE model = ? AND prompt_set = 'abstractive' ORDER BY contribution DESC""",
        f"{form}-{site}",
    )
    (largest, low, high, *where), second, *_ = found
    assert where == ["ffn", planted.LAYER] and low <= largest <= high
    assert largest > 0 and abs(second[0]) < 0.02 * largest
    # What speaks for the argument is the head that says it.
    assert found[-1][3:] == ("attention", 0) and found[-1][0] < 0
    assert len(found) == 2 * planted.LAYERS + 2
