"""Stage ovectors: who may give an o-vector, which of them do, and what is cut and said of it."""

import json
import random
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pytest
import torch

import tiny
from conftest import describe, main, run_stage
from test_edits import FINAL_NORM
from test_states import plain_states
from vecsweep import Problem
from vecsweep.files import Tensors, read_table, write_table
from vecsweep.layout import STAGES
from vecsweep.stages.ovectors import eligible_donors, leaves_prompts, source_layers
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of

SEARCH = {
    "task": "towns",
    "start_layers": None,
    "extents": ["range", "once"],
    "modes": ["replace", "add"],
    "scales": [1.0],
    "position": "all",
    "end_depth": 1,
    "dev_prompts": None,
    "test_prompts": None,
    "seed": 0,
}
CUT = {"donors": "flips", "source_layers": 2, "per_layer": 4, "seed": 0}


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
    run_stage("ovectors", readout=made.readout, prompts=prompts, **cut, **CUT)
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
    assert {"start_layer", "method", "answer_rank_after"} <= set(tables[1].column_names)
    assert tables[1].schema.equals(tables[2].schema)


@pytest.mark.parametrize("sets", [2, 1])
def test_a_model_that_answers_nothing_comes_through(tmp_path, sets):
    # A random model: nobody can give an o-vector, and the whole grid is empty of them.
    tiny.save("gpt2", tmp_path / "weights")
    results = tmp_path / "results"
    # Extractive twins are optional: without them there is one set less, and nothing else.
    twins = {} if sets == 2 else {"extractive": None}
    task = tiny.write_task(tmp_path / "tasks", "towns", **twins)
    made = chain(results, "random", tmp_path / "weights", task, 3, max_prompts=6)
    assert set(read_table(made.stages)["pattern"].to_pylist()) == {"incorrect"}
    assert_no_vectors(made, 32)
    assert read_table(made.ablations).num_rows == sets * 6 * 7
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
        assert database.execute("SELECT count(*) FROM ablations").fetchall() == [(sets * 6 * 7,)]
    assert list((results / "tables").glob("*.csv"))


# (prompt set, function layer, function site, flip layer), and the layer that each rule cuts it from.
CASES = {
    "flip": (("abstractive", 2, "ffn", 2), {"flips": 2, "any": 2}),
    "flip-before": (("abstractive", 3, "attention", 1), {"flips": 1}),
    "direct": (("abstractive", 1, "ffn", None), {"any": 1}),
    "either-alone": (("abstractive", 2, "both", 2), {"flips": 2, "any": 2}),
    "by-attention": (("abstractive", 2, "attention", None), {}),
    "only-together": (("abstractive", 2, "joint", None), {}),
    "incorrect": (("abstractive", None, None, None), {}),
    "at-the-first-layer": (("abstractive", 0, "ffn", 0), {"flips": 0, "any": 0}),
    "copied": (("extractive", 2, "ffn", 2), {}),
}


def case_rows(case, split="train"):
    """Prompt and stages rows: the case is prompt 7, in the second row of its set's prompts."""
    (prompt_set, layer, site, flip), _ = CASES[case]
    prompts, stages = [], []
    for number in (3, 7):
        for which in ("abstractive", "extractive"):
            mine = number == 7 and which == prompt_set
            names = {"prompt_id": number, "prompt_set": which}
            words = {"argument": f"x{number}", "answer": f"y{number}"}
            prompts.append(names | words | {"split": split})
            found = {"function_layer": layer, "function_site": site, "flip_layer": flip}
            stages.append(names | (found if mine else dict.fromkeys(found)))
    prompts.sort(key=lambda row: row["prompt_set"])
    return prompts, stages


@pytest.mark.parametrize("rule", ["flips", "any"])
@pytest.mark.parametrize("case", CASES)
def test_who_may_give_an_o_vector(case, rule):
    prompts, stages = case_rows(case)
    layer = CASES[case][1].get(rule)
    donor = {"prompt_id": 7, "argument": "x7", "answer": "y7", "layer": layer, "row": 1}
    found = eligible_donors(prompts, stages, rule)
    assert found == ([] if layer is None else [donor])
    # Stages rows come in any order.
    assert eligible_donors(prompts, stages[::-1], rule) == found


@pytest.mark.parametrize("split", ["dev", "test"])
def test_only_train_gives_vectors(split):
    for rule in ("flips", "any"):
        assert eligible_donors(*case_rows("flip", split), rule) == []


def asked_rows(answers):
    """Abstractive rows of answers' first tokens, {split: [tokens of each]}."""
    base = {"prompt_set": "abstractive", "out_of_domain": False, "shown_tokens": []}
    return [
        base | {"split": split, "answer_tokens": t} for split, some in answers.items() for t in some
    ]


@pytest.mark.parametrize(
    "shown, answers, leaves",
    [
        ([1], {"dev": [[1]] * 9, "test": [[2]] * 9}, False),  # all of dev
        ([1], {"dev": [[2]] * 9, "test": [[1, 3]] * 3 + [[2]] * 6}, False),  # a third of test
        ([1], {"dev": [[2]] * 9, "test": [[1]] * 2 + [[2]] * 7}, True),
        ([1], {"dev": [[1], [2]], "test": [[2]]}, True),  # one-to-one: a demonstration may be dev's
        ([4], {"dev": [[1]] * 9, "test": [[2]] * 9}, True),
        ([], {"dev": [], "test": []}, True),
        ([1], {"train": [[1]] * 9, "dev": [[2]] * 4, "test": [[3]] * 4}, True),
    ],
)
def test_donors_leave_prompts_to_judge_by(shown, answers, leaves):
    """Of continents, prompts that show Asia took all dev prompts: nothing was left to choose on."""
    prompts = asked_rows(answers)
    assert leaves_prompts({"shown_tokens": shown}, prompts) == leaves
    # Neither another set nor another domain counts.
    others = [row | {"prompt_set": "extractive"} for row in prompts]
    others += [row | {"out_of_domain": True} for row in prompts]
    assert leaves_prompts({"shown_tokens": shown}, others)


def eligible_at(layers):
    return [{"prompt_id": i, "layer": layer} for i, layer in enumerate(layers)]


@pytest.mark.parametrize(
    "layers, count, expected",
    [
        ([2, 2, 2, 2, 3, 3, 7], 2, [(2, 4), (3, 2)]),
        ([2, 2, 2, 2, 3, 3, 7], 6, [(2, 4), (3, 2), (7, 1)]),
        ([7, 3, 2], 2, [(2, 1), (3, 1)]),  # equally common: the lower first
        ([9, 9, 4], 1, [(9, 2)]),  # the commonest first
        ([], 4, []),
    ],
)
def test_source_layers_are_the_commonest(layers, count, expected):
    eligible = eligible_at(layers)
    for seed in range(5):
        found = source_layers(eligible, count, seed)
        assert [(layer, len(donors)) for layer, donors in found.items()] == expected
        for layer, donors in found.items():
            assert sorted(d["prompt_id"] for d in donors) == [
                i for i, other in enumerate(layers) if other == layer
            ]
        assert source_layers(eligible, count, seed) == found
    first = {str(source_layers(eligible, count, seed)) for seed in range(20)}
    assert len(first) > 1 or len(set(layers)) == len(layers)


def stages_table(rows, layers, path):
    """A stages file that says, seeded, which FFN flipped each abstractive train prompt."""
    draw = random.Random(5)
    columns = [
        {
            "prompt_id": row["prompt_id"],
            "prompt_set": row["prompt_set"],
            "function_layer": 2,
            "function_site": "attention",
            "flip_layer": draw.choice([None, *range(layers)]),
        }
        for row in rows
    ]
    write_table(pa.Table.from_pylist(columns), path)
    train = {row["prompt_id"] for row in rows if row["split"] == "train"}
    return {
        row["prompt_id"]: row["flip_layer"]
        for row in columns
        if row["prompt_set"] == "abstractive"
        and row["flip_layer"] is not None
        and row["prompt_id"] in train
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
        **CUT,
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
    flips = {int(k): ids for k, ids in json.loads(cut.file.metadata["flips"]).items()}
    assert len(flips) == 2 and cut.file.metadata["eligible"] == str(len(cut.sources))
    assert cut.file.metadata["step_version"] == str(STAGES["ovectors"].version)
    vectors, table = cut.file["vectors"], cut.table.to_pylist()
    assert len(vectors) == len(donors) == len(table)

    def update(prompt_id, layer):
        ids = cut.rows[prompt_id]["token_ids"]
        return plain_states(family.model, ids, cut.parallel)[f"ffn_out.{layer:02d}"]

    for vector, (prompt_id, layer), row in zip(vectors, donors, table):
        # All donors of the layer, also those that are not kept, are in its mean.
        everyone = [number for number, source in cut.sources.items() if source == layer]
        assert sorted(flips[layer]) == sorted(everyone) and row["flips"] == len(everyone)
        chosen = everyone if prompt_id is None else [prompt_id]
        assert set(chosen) <= set(everyone)
        plain = torch.stack([update(number, layer) for number in chosen]).mean(0)
        assert (vector - plain).abs().max() <= 1e-5 * plain.abs().max()
        assert (row["donor"], row["layer"], row["rule"]) == (prompt_id, layer, "flips")
        prompt = cut.rows.get(prompt_id, {"argument": None, "answer": None})
        assert (row["argument"], row["answer"]) == (prompt["argument"], prompt["answer"])
    assert {(row["model"], row["task"]) for row in table} == {(family.kind, "towns")}
    for layer, everyone in flips.items():
        here = [number for number, source in donors if source == layer]
        assert len(here) == min(len(everyone), CUT["per_layer"]) + 1 and here[-1] is None


@torch.inference_mode()
def test_what_is_said_of_a_vector(family, cut):
    vectors, table = cut.file["vectors"], cut.table.to_pylist()
    default = "transformer.ln_f" if hasattr(family.model, "transformer") else "model.norm"
    norm = family.model.get_submodule(FINAL_NORM.get(family.model.config.model_type, default))
    logits = family.model.get_output_embeddings()(norm(vectors))
    means = {row["layer"]: v for row, v in zip(table, vectors) if row["donor"] is None}
    for vector, scores, row in zip(vectors, logits, table):
        assert row["norm"] == pytest.approx(vector.square().sum().sqrt().item(), rel=1e-5)
        mean = means[row["layer"]]
        cosine = (vector @ mean) / (vector.norm() * mean.norm())
        assert row["cosine_to_mean"] == pytest.approx(cosine.item(), abs=1e-5)
        # The ten largest and smallest logits of the vector read out, in order.
        for tokens, best in (
            (row["promoted"], scores.sort(descending=True)),
            (row["demoted"], scores.sort()),
        ):
            torch.testing.assert_close(scores[tokens], best.values[:10], rtol=1e-5, atol=1e-5)
            assert len(set(tokens)) == 10
        assert row["donor"] is not None or row["cosine_to_mean"] == pytest.approx(1, abs=1e-5)


def test_directions_span_the_vectors_of_the_source_layers(family, cut):
    """Of no other donor: dev and test prompts are told apart from these alone."""
    directions = cut.file["directions"]
    used = {number for ids in json.loads(cut.file.metadata["flips"]).values() for number in ids}
    assert len(directions) == min(len(used), 32)
    torch.testing.assert_close(
        directions @ directions.T, torch.eye(len(directions)), rtol=0, atol=1e-5
    )
    everything = torch.stack(
        [
            plain_states(family.model, cut.rows[number]["token_ids"], cut.parallel)[
                f"ffn_out.{layer:02d}"
            ]
            for number, layer in cut.sources.items()
            if number in used
        ]
    )
    # All vectors lie in them, and the first ones hold the most of their length.
    torch.testing.assert_close(
        everything @ directions.T @ directions, everything, rtol=0, atol=1e-4
    )
    held = (everything @ directions.T).square().sum(0)
    assert (held[:-1] >= held[1:] * (1 - 1e-4)).all() and held[0] > held[-1]


def test_states_of_other_prompts_are_refused(tiny_model, tmp_path):
    stage, inputs = tiny_model("gpt2"), {}
    for name in ("towns", "verbs"):
        inputs[name] = tmp_path / f"{name}.parquet"
        task = tiny.write_task(tmp_path, name)
        shown = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": None})
        run_stage(
            "prompts", model=stage.description, task=task, settings=shown, output=inputs[name]
        )
    states = tmp_path / "states.safetensors"
    given = {"model": stage.description, "readout": stage.readout, "prompts": inputs["towns"]}
    run_stage("states", **given, batch_tokens=512, output=states)
    with pytest.raises(Problem, match="states.safetensors belongs to other prompts"):
        states_of(states, kept_rows(inputs["verbs"], CAPTURED))
    assert "ffn_out.00" in states_of(states, kept_rows(inputs["towns"], CAPTURED))
