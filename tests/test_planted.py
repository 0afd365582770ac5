"""Ground truth: the whole workflow on models built by hand, see `planted`.

The models with the function in an FFN, in every form, and GPT-2's twin with it in attention go
through Snakemake; the attention twins of the other forms through the same stages one by one.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import duckdb
import pytest
import torch
import yaml

import planted
from conftest import REPO
from test_ovectors import assert_no_vectors, chain
from vecsweep.files import Tensors, read_table
from vecsweep.stages import ablations

FFN_MODELS = [f"{form}-ffn" for form in planted.FORMS]
TWIN = "gpt2-attention"
MODELS = [*FFN_MODELS, TWIN]
DONORS = 4
INSIDE = planted.COUNT - planted.OUTSIDE
EVERY = planted.COUNT


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """One run of the workflow: the results folder, a query of the database, and the vectors."""
    folder = tmp_path_factory.mktemp("planted")
    vectors = {}
    config = {
        "models": {},
        "tasks": {"towns": {"file": str(planted.write_task(folder / "tasks"))}},
        "ovectors": {"donors": DONORS},
        "interventions": {"controls_over_layers": "towns"},
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
    snakemake = [sys.executable, "-m", "snakemake", "results/summary.duckdb", "--cores", "2"]
    snakemake += ["--snakefile", REPO / "Snakefile", "--directory", folder]
    snakemake += ["--configfile", folder / "config.yaml"]
    # The jobs call `python`: the one that runs the tests.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        list(map(str, snakemake)),
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
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


def built_stages(site):
    """The stages of all prompts of a model, by prompt set; the copying head is in block 1."""
    return {
        "abstractive": ("argument-function", 0, planted.LAYER - 1, planted.LAYER, site, 2),
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
    built = built_stages(name.split("-")[1])
    assert sorted(found) == [(key, *built[key], EVERY) for key in sorted(built)]


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_is_found(sweep, name):
    file = Tensors(sweep.results / "ovectors" / name / "towns.safetensors")
    vectors, planted_one = file["vectors"], sweep.vectors[name][None]
    assert vectors.shape == (DONORS + 1, planted.D_MODEL)  # the mean of all donors is the last
    assert torch.cosine_similarity(vectors, planted_one).min() > 0.99
    # All eligible vectors are one direction.
    assert abs(torch.cosine_similarity(file["directions"][:1], planted_one)) > 0.99
    assert file.metadata["eligible"] == str(INSIDE)
    rows = read_table(sweep.results / "ovectors" / name / "towns.parquet").to_pylist()
    assert {row["layer"] for row in rows} == {planted.LAYER} and rows[-1]["donor"] is None
    pairs = dict(zip(planted.ARGUMENTS[:INSIDE], planted.ANSWERS))
    assert all(pairs[row["argument"]] == row["answer"] for row in rows[:-1])
    # Read out by itself it says "an answer", and "no argument", of no pair in particular.
    words = planted.words()
    for row in rows:
        assert {words[token] for token in row["promoted"]} <= set(planted.ANSWERS)
        assert {words[token] for token in row["demoted"]} <= set(planted.ARGUMENTS)


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_works_from_every_start_layer(sweep, name):
    found = sweep.query(
        """SELECT start_layer, mode, min(end_layer), min(reciprocal), count(DISTINCT coalesce(donor, -1))
           FROM (SELECT *, 1 / (1 + rank_after) AS reciprocal FROM interventions
                 WHERE model = ? AND split = 'dev' AND target = 'answer')
           GROUP BY ALL ORDER BY ALL""",
        name,
    )
    layers = range(planted.LAYERS)
    assert found == [(i, m, layers[-1], 1, DONORS + 1) for i in layers for m in ("add", "replace")]


def outcomes(sweep, name, *controls):
    """The outcomes on test of some controls, (domain, prompt_id, target, before, after) rows."""
    listed = ", ".join(f"'{control}'" for control in controls)
    return sweep.query(
        f"""SELECT domain, prompt_id, target, rank_before, rank_after FROM interventions
            WHERE model = ? AND split = 'test' AND control IN ({listed})""",
        name,
    )


@pytest.mark.parametrize("name", FFN_MODELS)
def test_vector_flips_every_argument(sweep, name):
    # The chosen vector, the other donors', and its one neuron and one direction alone.
    for control in ("o-vector", "donor", "neurons_1", "directions_1"):
        rows = outcomes(sweep, name, control)
        # Only the test split, and no donor's pair, is in it.
        (test,) = sweep.query(
            """SELECT list(DISTINCT prompt_id) FROM prompts
               WHERE model = ? AND split = 'test' AND NOT out_of_domain""",
            name,
        )
        (donors,) = sweep.query("SELECT list(donor) FROM ovectors WHERE model = ?", name)
        inside = set(test[0]) - set(donors[0])
        assert len(inside) > 3
        expected = {("in", i) for i in inside} | {("out", i) for i in range(INSIDE, EVERY)}
        assert {row[:2] for row in rows} == expected
        for _, _, target, before, after in rows:
            if target == "argument":
                assert before == 0 and after > 0
            else:
                assert before > 0 and after == 0


@pytest.mark.parametrize("name", FFN_MODELS)
def test_controls_change_no_prompt(sweep, name):
    # At every start layer: the argument is the top token before and after.
    for control in ("random", "zero", "unrelated"):
        rows = [row for row in outcomes(sweep, name, control) if row[2] == "argument"]
        prompts = {row[:2] for row in rows}
        assert prompts == {row[:2] for row in outcomes(sweep, name, "o-vector")}
        assert {row[3:] for row in rows} == {(0, 0)}
    # They are what they are called: several, and as strong as the vector.
    ((count,),) = sweep.query(
        """SELECT count(DISTINCT repeat) FROM interventions
           WHERE model = ? AND control = 'random' AND start_layer = 0""",
        name,
    )
    assert count == 3


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
        built = built_stages("attention")[row["prompt_set"]]
        assert tuple(row[c] for c in [*columns, "saturation_layers"]) == built
    assert_no_vectors(made, planted.D_MODEL)
    for row in read_table(made.ablations).to_pylist():
        removed = range(planted.LAYERS - row["removed_layers"], planted.LAYERS)
        assert row["correct"] == right("attention", row["prompt_set"], row["sublayer"], removed)
