"""Stage ovectors: who may give an o-vector, which of them do, and what is cut and said of it."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pytest
import torch

import tiny
from conftest import describe, main, run_stage
from test_edits import FINAL_NORM
from test_states import plain_states
from vecsweep.files import Tensors, read_table, write_table
from vecsweep.layout import STAGES
from vecsweep.stages.ovectors import eligible_donors, spread
from vecsweep.tasks.rows import CAPTURED, kept_rows

SEARCH = {
    "modes": ["replace", "add"],
    "scales": [1.0],
    "position": "all",
    "end_depth": 1,
    "dev_prompts": None,
    "test_prompts": None,
    "seed": 0,
    "controls_over_layers": False,
}


def chain(results, name, weights, task, layers, max_prompts=None):
    """Run every stage but the summary for one model and task, in the workflow's layout."""
    made = describe("gpt2", weights, results / "models" / name, name=name, layers=layers)
    assert main(made.arguments) == 0
    cell, block = f"{name}/{task.stem}", f"0-{layers - 1}"

    def path(stage, ending="parquet"):
        return results / stage / f"{cell}.{ending}"

    shown = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": max_prompts})
    search = json.dumps(SEARCH)
    ends = {"first": 0, "last": layers - 1}
    prompts, states, vectors = (
        path("prompts"),
        path("states", "safetensors"),
        path("ovectors", "safetensors"),
    )
    lens, injected = (
        results / stage / cell / f"{block}.parquet" for stage in ("lens", "interventions")
    )
    inputs = {"model": made.description, "readout": made.readout, "prompts": prompts}
    run_stage("prompts", model=made.description, task=task, settings=shown, output=prompts)
    run_stage("states", **inputs, batch_tokens=2048, output=states)
    run_stage("lens", **inputs, states=states, **ends, output=lens)
    run_stage("stages", lens=lens, output=path("stages"))
    run_stage("attribution", **inputs, states=states, output=path("attribution"))
    cut = {
        "states": states,
        "stages": path("stages"),
        "vectors": vectors,
        "table": path("ovectors"),
    }
    run_stage("ovectors", readout=made.readout, prompts=prompts, **cut, donors=4, seed=0)
    inputs |= {"batch_tokens": 2048, "settings": search}
    run_stage("interventions", **inputs, vectors=vectors, **ends, output=injected)
    run_stage("selection", **inputs, vectors=vectors, search=injected, output=path("selection"))
    inputs["settings"] = json.dumps({"max_prompts": None, "seed": 0, "twins": False})
    run_stage("ablations", **inputs, output=path("ablations"))
    return SimpleNamespace(
        stages=path("stages"),
        vectors=vectors,
        tables=[path("ovectors"), injected, path("selection")],
        ablations=path("ablations"),
    )


def assert_no_vectors(made, d_model):
    """Empty files, but valid ones with all their columns."""
    file = Tensors(made.vectors)
    assert file["vectors"].shape == file["directions"].shape == (0, d_model)
    assert json.loads(file.metadata["donors"]) == [] and file.metadata["eligible"] == "0"
    tables = [read_table(path) for path in made.tables]
    assert [table.num_rows for table in tables] == [0, 0, 0]
    assert {"donor", "layer", "norm", "promoted"} <= set(tables[0].column_names)
    assert {"start_layer", "control", "answer_rank_after"} <= set(tables[1].column_names)
    assert tables[1].schema.equals(tables[2].schema)


def test_a_model_that_answers_nothing_comes_through(tmp_path):
    # A random model: nobody can give an o-vector, and the whole grid is empty of them.
    tiny.save("gpt2", tmp_path / "weights")
    results = tmp_path / "results"
    task = tiny.write_task(tmp_path / "tasks", "towns")
    made = chain(results, "random", tmp_path / "weights", task, 3, max_prompts=6)
    assert set(read_table(made.stages)["pattern"].to_pylist()) == {"incorrect"}
    assert_no_vectors(made, 32)
    assert read_table(made.ablations).num_rows == 2 * 6 * 7
    run_stage(
        "summary",
        results=results,
        grid={"random": [3, 3]},
        tasks={"all": ["towns"], "injected": ["towns"], "ablated": ["towns"], "swapped": []},
        top_k=5,
        resamples=100,
        database=results / "summary.duckdb",
        tables=results / "tables",
    )
    with duckdb.connect(str(results / "summary.duckdb"), read_only=True) as database:
        for table in ("ovectors", "interventions"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
        assert database.execute("SELECT count(*) FROM ablations").fetchall() == [(2 * 6 * 7,)]
    assert list((results / "tables").glob("*.csv"))


# (prompt set, pattern, function layer, function site) and whether it may give an o-vector.
CASES = {
    "by-ffn": ("abstractive", "argument-function", 2, "ffn", True),
    "direct": ("abstractive", "direct", 1, "ffn", True),
    "either-alone": ("abstractive", "argument-function", 2, "both", True),
    "by-attention": ("abstractive", "argument-function", 2, "attention", False),
    "only-together": ("abstractive", "argument-function", 2, "joint", False),
    "incorrect": ("abstractive", "incorrect", None, None, False),
    "copied": ("extractive", "argument-function", 2, "ffn", False),
}


def case_rows(case, out_of_domain=False):
    """Prompt and stages rows: the case is prompt 7, in the second row of its set's prompts."""
    prompt_set, pattern, layer, site, _ = CASES[case]
    prompts, stages = [], []
    for number in (3, 7):
        for which in ("abstractive", "extractive"):
            mine = number == 7 and which == prompt_set
            prompts.append(
                {
                    "prompt_id": number,
                    "prompt_set": which,
                    "argument": f"x{number}",
                    "answer": f"y{number}",
                    "out_of_domain": out_of_domain,
                }
            )
            stages.append(
                {
                    "prompt_id": number,
                    "prompt_set": which,
                    "pattern": pattern if mine else "incorrect",
                    "function_layer": layer if mine else None,
                    "function_site": site if mine else None,
                }
            )
    prompts.sort(key=lambda row: row["prompt_set"])
    return prompts, stages


@pytest.mark.parametrize("case", CASES)
def test_who_may_give_an_o_vector(case):
    prompts, stages = case_rows(case)
    donor = {"prompt_id": 7, "argument": "x7", "answer": "y7", "layer": CASES[case][2], "row": 1}
    assert eligible_donors(prompts, stages) == ([donor] if CASES[case][-1] else [])
    # Stages rows come in any order.
    assert eligible_donors(prompts, stages[::-1]) == eligible_donors(prompts, stages)


def test_out_of_domain_prompts_give_none():
    assert eligible_donors(*case_rows("by-ffn", out_of_domain=True)) == []


def eligible_at(layers):
    return [{"prompt_id": i, "layer": layer} for i, layer in enumerate(layers)]


@pytest.mark.parametrize(
    "layers, count, expected",
    [
        ([2, 2, 2, 2, 3, 3, 7], 4, {2: 2, 3: 1, 7: 1}),
        ([2, 2, 2, 2, 3, 3, 7], 6, {2: 3, 3: 2, 7: 1}),
        ([7, 3, 2], 2, {2: 1, 3: 1}),  # equally common: the lower first
        ([9, 9, 4], 1, {9: 1}),  # the commonest first
        ([5, 5], 8, {5: 2}),
        ([], 4, {}),
    ],
)
def test_donors_are_spread_over_source_layers(layers, count, expected):
    eligible = eligible_at(layers)
    for seed in range(5):
        chosen = spread(eligible, count, seed)
        assert Counter(d["layer"] for d in chosen) == expected
        assert len({d["prompt_id"] for d in chosen}) == len(chosen)
        assert all(donor in eligible for donor in chosen)
        assert spread(eligible, count, seed) == chosen
    if len(chosen) == len(eligible):
        return
    draws = {tuple(d["prompt_id"] for d in spread(eligible, count, seed)) for seed in range(20)}
    assert len(draws) > 1 or len(set(layers)) == len(layers)


def stages_table(rows, layers, path):
    """A stages file that says, seeded, where each abstractive prompt's answer came from."""
    draw = random.Random(5)
    sites = ["ffn", "ffn", "ffn", "attention", "both", "joint", None]
    columns = [
        {
            "prompt_id": row["prompt_id"],
            "prompt_set": row["prompt_set"],
            "function_layer": draw.randrange(layers),
            "function_site": sites[number % len(sites)],
        }
        for number, row in enumerate(rows)
    ]
    write_table(pa.Table.from_pylist(columns), path)
    return {
        row["prompt_id"]: row["function_layer"]
        for row in columns
        if row["prompt_set"] == "abstractive" and row["function_site"] in ("ffn", "both")
    }


@pytest.fixture
def cut(family, tmp_path):
    """Stages prompts, states and ovectors on a tiny model, with made-up stages between."""
    paths = {name: tmp_path / f"{name}.parquet" for name in ("prompts", "stages", "table")}
    states, vectors = tmp_path / "states.safetensors", tmp_path / "vectors.safetensors"
    task = tiny.write_task(tmp_path, "towns")
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": None})
    run_stage(
        "prompts", model=family.description, task=task, settings=settings, output=paths["prompts"]
    )
    inputs = {"model": family.description, "readout": family.readout, "prompts": paths["prompts"]}
    run_stage("states", **inputs, batch_tokens=512, output=states)
    rows = kept_rows(paths["prompts"], CAPTURED)
    layers = tiny.layers_of(family.kind)
    sources = stages_table(rows, layers, paths["stages"])
    run_stage(
        "ovectors",
        readout=family.readout,
        **paths,
        states=states,
        donors=4,
        seed=0,
        vectors=vectors,
    )
    return SimpleNamespace(
        rows={row["prompt_id"]: row for row in rows if row["prompt_set"] == "abstractive"},
        parallel=family.kind in ("gptj", "gpt_neox"),
        sources=sources,
        file=Tensors(vectors),
        table=read_table(paths["table"]),
    )


@torch.inference_mode()
def test_vectors_are_the_ffns_updates(family, cut):
    donors = json.loads(cut.file.metadata["donors"])
    assert len(donors) == 5 and cut.file.metadata["eligible"] == str(len(cut.sources))
    assert cut.file.metadata["step_version"] == str(STAGES["ovectors"].version)
    vectors, table = cut.file["vectors"], cut.table.to_pylist()
    for vector, (prompt_id, layer), row in zip(vectors[:-1], donors, table):
        assert cut.sources[prompt_id] == layer
        prompt = cut.rows[prompt_id]
        plain = plain_states(family.model, prompt["token_ids"], cut.parallel)[
            f"ffn_out.{layer:02d}"
        ]
        assert (vector - plain).abs().max() <= 1e-5 * plain.abs().max()
        assert (row["donor"], row["layer"]) == (prompt_id, layer)
        assert (row["argument"], row["answer"]) == (prompt["argument"], prompt["answer"])
    # The mean of the donors is the last; it counts as cut where most of them are.
    torch.testing.assert_close(vectors[-1], vectors[:-1].mean(0))
    middle = sorted(layer for _, layer in donors[:-1])[1]
    assert donors[-1] == [None, middle] and table[-1]["donor"] is None
    assert table[-1]["argument"] is None and table[-1]["layer"] == middle
    assert {(row["model"], row["task"]) for row in table} == {(family.kind, "towns")}


@torch.inference_mode()
def test_what_is_said_of_a_vector(family, cut):
    vectors, table = cut.file["vectors"], cut.table.to_pylist()
    default = "transformer.ln_f" if hasattr(family.model, "transformer") else "model.norm"
    norm = family.model.get_submodule(FINAL_NORM.get(family.model.config.model_type, default))
    logits = family.model.get_output_embeddings()(norm(vectors))
    mean = vectors[-1]
    for vector, scores, row in zip(vectors, logits, table):
        assert row["norm"] == pytest.approx(vector.square().sum().sqrt().item(), rel=1e-5)
        cosine = (vector @ mean) / (vector.norm() * mean.norm())
        assert row["cosine_to_mean"] == pytest.approx(cosine.item(), abs=1e-5)
        # The ten largest and smallest logits of the vector read out, in order.
        for tokens, best in (
            (row["promoted"], scores.sort(descending=True)),
            (row["demoted"], scores.sort()),
        ):
            torch.testing.assert_close(scores[tokens], best.values[:10], rtol=1e-5, atol=1e-5)
            assert len(set(tokens)) == 10
    assert table[-1]["cosine_to_mean"] == pytest.approx(1, abs=1e-5)


def test_directions_span_the_eligible_vectors(family, cut):
    directions = cut.file["directions"]
    assert len(directions) == min(len(cut.sources), 32)
    torch.testing.assert_close(
        directions @ directions.T, torch.eye(len(directions)), rtol=0, atol=1e-5
    )
    everything = torch.stack(
        [
            plain_states(family.model, cut.rows[number]["token_ids"], cut.parallel)[
                f"ffn_out.{layer:02d}"
            ]
            for number, layer in cut.sources.items()
        ]
    )
    # All vectors lie in them, and the first ones hold the most of their length.
    torch.testing.assert_close(
        everything @ directions.T @ directions, everything, rtol=0, atol=1e-4
    )
    held = (everything @ directions.T).square().sum(0)
    assert (held[:-1] >= held[1:] * (1 - 1e-4)).all() and held[0] > held[-1]
