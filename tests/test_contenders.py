"""Task vectors and function vectors: equal to plain hooks, train alone, the o-vector's protocol."""

import itertools
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import planted
import tiny
from conftest import describe, main, run_stage
from test_ablations import write_prompts
from test_edits import block_of, plain_run, sublayer_of
from test_interventions import D_MODEL, assert_outcomes, cell, unseen_prompts
from test_ovectors import SEARCH
from vecsweep import Problem, config, tasks
from vecsweep.engine import load
from vecsweep.engine.readout import Readout
from vecsweep.files import Tensors, read_table, write_tensors
from vecsweep.methods import Vector, grid, heads, shown
from vecsweep.stages import contenders
from vecsweep.tasks.readers import Reader
from vecsweep.tasks.rows import NOVEL, kept_rows
from vecsweep.tasks.shots import draw, in_halves, train_pool, wrongly

# Where the heads' outputs go in, written down again so that a wrong row of families.py cannot hide.
PROJECTIONS = {
    "gpt2": "attn.c_proj",
    "gptj": "attn.out_proj",
    "gpt_neox": "attention.dense",
    "bloom": "self_attention.dense",
    "opt": "self_attn.out_proj",
}
HEADS = 4


def projection(model, layer):
    name = PROJECTIONS.get(model.config.model_type, "self_attn.o_proj")
    return block_of(model, layer).get_submodule(name)


@torch.inference_mode()
def by_hooks(model, ids, put=None):
    """(what each layer's projection reads at the last token, its update over its output, log
    probabilities); `put` is (layer, head, vector) to put into its input there."""
    inside, scales, handles = [], [], []

    def change(module, args):
        if put and module is projection(model, put[0]):
            size = args[0].shape[-1] // HEADS
            new = args[0].clone()
            new[..., -1, put[1] * size : (put[1] + 1) * size] = put[2]
            return (new,)

    def keep(module, args, output):
        inside.append(args[0].reshape(-1, args[0].shape[-1])[-1])
        scales.append(output.reshape(-1, output.shape[-1])[-1])

    def divide(module, args, output):
        scales[-1] = output.reshape(-1, output.shape[-1])[-1] / scales[-1]

    normed = model.config.model_type == "gemma3_text"
    for layer in range(tiny.layers_of(model.config.model_type)):
        handles.append(projection(model, layer).register_forward_pre_hook(change))
        handles.append(projection(model, layer).register_forward_hook(keep))
        if normed:
            norm = sublayer_of(model, layer, "attention")
            handles.append(norm.register_forward_hook(divide))
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    ones = torch.ones(len(inside), D_MODEL)
    return torch.stack(inside), torch.stack(scales) if normed else ones, logits.log_softmax(-1)


def shown_rows(model, count=3):
    """Two sets of random prompts that share their beginning; a model's own top token is the answer
    of all but one, which another token is."""
    generator = torch.Generator().manual_seed(3)

    def tokens(length):
        return torch.randint(2, tiny.VOCABULARY, (length,), generator=generator).tolist()

    sets = []
    for _ in range(2):
        first, second = tokens(7), tokens(7)
        ends = [tokens(2 + i % 2) for i in range(count)]
        rows = [{"token_ids": first + end, "shuffled_ids": second + end} for end in ends]
        for row in rows:
            top = by_hooks(model, row["token_ids"])[2].argmax().item()
            row |= {"answer_tokens": [top], "argument_token": (top + 1) % tiny.VOCABULARY}
        sets.append(rows)
    wrong = sets[0][1]
    wrong["answer_tokens"] = [wrong["argument_token"]]
    return sets


def test_function_vectors_equal_plain_hooks(family):
    """Means of correct prompts, every head's effect, and the sum of the chosen heads' writings."""
    engine, readout = load.engine_of(family.model, 64), Readout.load(family.readout)
    assert heads.lacking(engine) is None
    model, sets = family.model, shown_rows(family.model)
    means, scales, right, said = heads.mean_outputs(engine, readout, sets)
    assert right == [[0, 2], [0, 1, 2]]
    rows = [row for some, numbers in zip(sets, right) for row in (some[i] for i in numbers)]
    plain = [by_hooks(model, row["token_ids"]) for row in rows]
    torch.testing.assert_close(
        means, torch.stack([p[0] for p in plain]).mean(0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        scales, torch.stack([p[1] for p in plain]).mean(0), rtol=1e-3, atol=1e-3
    )
    answers = [p[2][row["answer_tokens"][0]].exp() for p, row in zip(plain, rows)]
    assert said == pytest.approx(torch.stack(answers).mean().item(), rel=2e-3)

    layers = tiny.layers_of(family.kind)
    found, large = [], 0
    for some, numbers in zip(sets, right):
        chosen = [some[i] for i in numbers]
        effects, before = heads.indirect_effects(engine, readout, chosen, means)
        found.append(effects)
        assert effects.shape == (len(chosen), layers, HEADS)
        for row, measured, base in zip(chosen, effects, before):
            token = row["answer_tokens"][0]
            clean = by_hooks(model, row["shuffled_ids"])[2][token].exp().item()
            assert base.item() == pytest.approx(clean, rel=2e-3)
            for layer in range(layers):
                for head in range(HEADS):
                    mean = means[layer].view(HEADS, -1)[head]
                    edited = by_hooks(model, row["shuffled_ids"], (layer, head, mean))[2]
                    effect = edited[token].exp().item() - clean
                    assert measured[layer, head].item() == pytest.approx(
                        effect, abs=3e-3 * clean + 1e-7
                    )
                    large += abs(effect) > 0.05 * clean
    assert large  # else nothing put in would do as well

    mean = torch.cat(found).mean(0)
    best = heads.chosen_heads(mean)
    assert len(best) == 1 and mean[best[0]] == mean.max()
    two = [*best, (layers - 1, (best[0][1] + 1) % HEADS)]
    expected = torch.zeros(D_MODEL)
    with torch.inference_mode():
        for layer, head in two:
            module = projection(model, layer)
            alone = torch.zeros(HEADS, means.shape[1] // HEADS)
            alone[head] = means[layer].view(HEADS, -1)[head]
            write = module(alone.flatten()[None])[0] - module(torch.zeros(1, alone.numel()))[0]
            expected += write * scales[layer]
    got = heads.vector_of(engine, two, means, scales)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_family_without_a_known_projection_says_so():
    for kind, says in (("gpt_neo", "names no output projection"), ("phi3", None)):
        engine = load.engine_of(tiny.model(kind), 64)
        why = heads.lacking(engine)
        assert (says is None and why is None) or says in why
    engine.sharding = "zero"
    assert "several processes" in heads.lacking(engine)


def run_contenders(family, made, output="contenders.parquet", **options):
    """Stage contenders on a cell of tiny prompts; the outcomes as rows."""
    settings = made.settings | {"task_vectors": True, "function_vectors": True}
    inputs = {"model": family.description, "readout": family.readout, "prompts": made.prompts}
    inputs |= {"task": made.folder / "towns.yaml", "vectors": made.vectors, "batch_tokens": 90}
    inputs |= {"tokenizer": family.description.with_name("tokenizer.json")}
    inputs |= {"settings": json.dumps(settings), "output": made.folder / output}
    run_stage("contenders", **inputs, **options)
    return read_table(made.folder / output).to_pylist()


def test_contenders_equal_plain_hooks(family, tmp_path):
    """Both methods over their grid, on dev and test, on the o-vector's prompts."""
    made = cell(family, tmp_path)
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2))
    write_tensors({"function_vector": drawn}, tmp_path / "heads.safetensors")
    rows = run_contenders(family, made, heads=tmp_path / "heads.safetensors")

    task = tasks.load(tmp_path / "towns.yaml", "towns")
    reader = Reader.of(family.description, family.description.with_name("tokenizer.json"))
    pool = train_pool(made.prompts, [])
    sets = draw(task, reader, pool, shown.SETS, shown.SHOTS, shown.QUERIES, 0)
    prompts = [row["token_ids"] for some in sets for row in some]
    states = {}

    def vector_of(row):
        layer = row["source_layer"]
        if layer is None:
            return drawn
        if layer not in states:
            kept = []
            module = sublayer_of(family.model, layer, "block")
            handle = module.register_forward_hook(
                lambda module, args, output: kept.append(
                    (output[0] if isinstance(output, tuple) else output)[0, -1]
                )
            )
            for ids in prompts:
                plain_run(family.model, ids)
            handle.remove()
            states[layer] = torch.stack(kept).mean(0)
        return states[layer]

    for row in rows:
        assert row["position"] == "last"
        if row["method"] == "task vector":
            assert row["source_layer"] == row["start_layer"] == row["end_layer"]
            assert (row["mode"], row["scale"]) == ("replace_state", 1)
        else:
            assert (row["method"], row["source_layer"]) == ("function vector", None)
            assert row["mode"] == "add_state"
    assert_outcomes(family.model, rows, made.rows, vector_of)

    layers = tiny.layers_of(family.kind)
    tried = {split: {} for split in ("dev", "test")}
    for row in rows:
        names = (name for name in grid.SETTING)
        tried[row["split"]].setdefault(row["method"], set()).add(tuple(row[n] for n in names))
    assert len(tried["dev"]["task vector"]) == layers
    assert len(tried["dev"]["function vector"]) == 2 * (2 * layers - 1)
    best = grid.best_settings([row for row in rows if row["split"] == "dev"])
    assert {m: set(s) for m, s in tried["test"].items()} == {
        name: {tuple(at[n] for n in grid.SETTING)} for name, at in best.items()
    }
    for split, count in (("dev", 3), ("test", 3)):
        used = {row["prompt_id"] for row in rows if row["split"] == split}
        assert used <= unseen_prompts(made, split) and len(used) == min(
            count, len(unseen_prompts(made, split))
        )


@pytest.mark.parametrize("count", [None, 2, 4, 9])
@pytest.mark.parametrize("modes", [["replace", "add"], ["add"]])
@pytest.mark.parametrize("extents", [["range", "once"], ["range"]])
@pytest.mark.parametrize("layers", [3, 18, 30])
def test_no_more_settings_than_an_o_vector_of_one_layer_has(count, modes, extents, layers):
    settings = {"start_layers": count, "modes": modes, "extents": extents, "scales": [1.0, 2.0]}
    settings |= {"end_depth": 1, "position": "all"}

    def settings_of(plans):
        return sum(len(plan.labels) for plan in plans)

    def vector(method, layer=None):
        return Vector(torch.ones(2), method, layer)

    own = grid.search_plans([vector("o-vector", 0)], settings, 0, layers - 1, layers)
    chosen = grid.state_layers(settings, layers)
    assert chosen[0] == 0 and chosen[-1] == layers - 1
    states = [vector("task vector", layer) for layer in chosen]
    found = grid.state_plans(states, settings, layers)
    assert len(chosen) == settings_of(found) <= settings_of(own)
    found = grid.state_plans([vector("function vector")], settings, layers)
    assert 0 < settings_of(found) <= settings_of(own)


# Enough for several demonstrations, of words that the tokenizer knows: all others start with a letter.
MANY = tiny.CAPITALS | tiny.PASTS


def test_what_is_shown_gives_no_answer_of_dev_or_test_away(tiny_model, tmp_path):
    """Train pairs alone, none with an answer of the others; what is asked is not among the shown."""
    stage = tiny_model("llama")
    prompts = write_prompts(stage, tmp_path, rows=MANY)
    rows = kept_rows(prompts, ("abstractive", "novel"))
    pool = train_pool(prompts, [])
    judged = [row for row in rows if row["split"] != "train"]
    tokens = {token for row in judged for token in row["answer_tokens"]}
    assert pool and all(row["split"] == "train" for row in pool)
    assert not tokens & {token for row in pool for token in row["answer_tokens"]}
    # The same prompts as those of another task that reports: nothing is left.
    assert train_pool(prompts, [prompts]) == []

    task = tasks.load(tmp_path / "towns.yaml", "towns")
    reader = Reader.of(stage.description, stage.description.with_name("tokenizer.json"))
    sets = draw(task, reader, pool, 9, 3, 2, 0)
    assert sets == draw(task, reader, pool, 9, 3, 2, 0) != draw(task, reader, pool, 9, 3, 2, 1)
    known = {row["argument"]: row["answers"][0] for row in task.rows}
    mine, shuffled = {row["argument"] for row in pool}, 0
    for some in sets:
        for row in some:
            lines = reader.tokenizer.decode(row["token_ids"]).split("Q: What is the capital of ")[
                1:
            ]
            pairs = [line.split("?\nA:") for line in lines]
            given = [answer.strip() for _, answer in pairs[:-1]]
            assert [known[argument] for argument, _ in pairs[:-1]] == given
            assert known[row["argument"]] not in given
            assert {argument for argument, _ in pairs} <= mine
            assert row["argument"] not in {argument for argument, _ in pairs[:-1]}
            assert (row["shuffled_ids"] is None) == (len(given) == 1)
            if len(given) == 1:  # nobody has another answer to give
                continue
            others = reader.tokenizer.decode(row["shuffled_ids"]).split(
                "Q: What is the capital of "
            )
            moved = [line.split("?\nA:") for line in others[1:]]
            assert pairs[-1] == moved[-1] == [row["argument"], ""]
            assert [a for a, _ in pairs] == [a for a, _ in moved]
            swapped = [answer.strip() for _, answer in moved[:-1]]
            assert sorted(swapped) == sorted(given)
            assert all(a != b for a, b in zip(swapped, given))
            shuffled += 1
    assert shuffled


def test_shuffled_demonstrations_all_have_wrong_answers():
    """Wherever they can: where no answer stands in more than half of them."""
    draw, refused = random.Random(0), 0
    for _ in range(500):
        answers = [[draw.choice("abcd"[: draw.randint(1, 4)])] for _ in range(draw.randint(0, 9))]
        shown = [{"argument": i, "answers": some} for i, some in enumerate(answers)]
        found = wrongly(shown)
        most = max(map(answers.count, answers), default=0)
        if not answers or 2 * most > len(answers):
            assert found is None
            refused += 1
            continue
        assert [one["argument"] for one in found] == [*range(len(shown))]
        assert sorted(one["answers"] for one in found) == sorted(answers)
        assert all(one["answers"] != own for one, own in zip(found, answers))
    assert 100 < refused < 400


def test_no_answer_stands_in_more_than_half_of_mixed_demonstrations():
    """And as many stay as can, the first ones: all of them where no answer comes twice."""
    draw, shortened = random.Random(1), 0
    for _ in range(500):
        letters = "abcdefgh"[: draw.randint(1, 8)]
        pool = [
            {"argument": i, "answers": [draw.choice(letters)]} for i in range(draw.randint(0, 14))
        ]
        most = draw.randint(0, 10)
        found = in_halves(pool, most)
        answers = [one["answers"] for one in found]
        assert [one for one in pool if one in found] == found and len(found) <= most
        assert not answers or 2 * max(map(answers.count, answers)) <= len(answers)
        assert not found or wrongly(found)
        # At most half of them one answer's: no more could be taken of any kind.
        each = sorted(sum(one["answers"] == [letter] for one in pool) for letter in letters)
        rest = sum(each[:-1])
        assert len(found) >= min(2 * (most // 2), 2 * rest if each[-1] > rest else len(pool) - 1)
        shortened += len(found) < min(most, len(pool))
    one_each = [{"argument": i, "answers": [str(i)]} for i in range(12)]
    assert in_halves(one_each, 10) == one_each[:10] and 50 < shortened < 450


@pytest.mark.parametrize(
    "rows, why",
    [
        (MANY, "no prompt with demonstrations is answered correctly"),
        (dict.fromkeys(MANY, "Paris"), "too few train pairs with different answers"),
        (None, "too few train pairs with different answers"),
    ],
)
def test_a_task_without_a_function_vector_says_why(rows, why, tiny_model, tmp_path, capsys):
    stage = tiny_model("gpt2")
    prompts = write_prompts(stage, tmp_path, rows=rows)
    paths = {"vectors": tmp_path / "h.safetensors", "table": tmp_path / "h.parquet"}
    inputs = {"model": stage.description, "readout": stage.readout, "prompts": prompts}
    inputs |= {"tokenizer": stage.description.with_name("tokenizer.json"), "batch_tokens": 64}
    settings = json.dumps({"task": "towns", "seed": 0})
    run_stage("heads", **inputs, task=tmp_path / "towns.yaml", settings=settings, **paths)
    assert f"no function vector: {why}" in capsys.readouterr().err
    assert len(Tensors(paths["vectors"])["function_vector"]) == 0
    assert read_table(paths["table"]).num_rows == 0


@pytest.mark.parametrize(
    "form, site", [("gpt2", "attention"), ("gptj", "ffn"), ("bloom", "attention")]
)
def test_the_planted_head_is_found(form, site, tmp_path):
    """Where nothing names the relation, one head's mean output brings the answer: that which adds
    the vector, or that which brings the flag the FFN waits for."""
    vector = planted.save(tmp_path / "weights", form, site)
    made = describe(form, tmp_path / "weights", tmp_path / "described", layers=planted.LAYERS)
    assert main(made.arguments) == 0
    path = planted.write_task(tmp_path)
    prompts = tmp_path / "prompts.parquet"
    shots = {"demonstrations": 1, "seed": 0, "max_prompts": None}
    run_stage("prompts", model=made.description, task=path, settings=shots, output=prompts)
    engine, readout, _ = loaded(made)
    task = tasks.load(path, "towns")
    reader = Reader.of(made.description, made.tokenizer)
    sets = draw(task, reader, train_pool(prompts, []), 3, 2, 3, 0)
    novel = {row["prompt_id"]: row["token_ids"] for row in kept_rows(prompts, NOVEL)}
    for row in (row for rows in sets for row in rows):
        row["shuffled_ids"] = novel[row["prompt_id"]]
    means, scales, right, shown_probability = heads.mean_outputs(engine, readout, sets)
    assert [len(numbers) for numbers in right] == [len(rows) for rows in sets]
    effects = torch.cat([heads.indirect_effects(engine, readout, rows, means)[0] for rows in sets])
    mean = effects.mean(0)
    expected = (planted.LAYER, 0) if site == "attention" else (0, 1)
    assert heads.chosen_heads(mean) == [expected]
    others = mean.clone()
    others[expected] = 0
    assert mean[expected] > 0.5 * shown_probability and others.max() < 0.02 * mean[expected]
    found = heads.vector_of(engine, [expected], means, scales)
    if site == "attention":
        # The layer norm shrinks what the head reads a little, by how much else is in the stream.
        assert torch.cosine_similarity(found, vector, 0) > 0.999
        assert 0.85 < found.norm() / vector.norm() < 1.01

    # Added to the stream, it brings every test prompt's own answer, below the FFN or anywhere.
    write_tensors({"function_vector": found}, tmp_path / "heads.safetensors")
    donors = {"vectors": torch.empty(0, planted.D_MODEL)}
    write_tensors(donors, tmp_path / "none.safetensors", {"donors": "[]", "flips": "{}"})
    cell_of = SimpleNamespace(
        folder=tmp_path,
        prompts=prompts,
        vectors=tmp_path / "none.safetensors",
        settings=SEARCH,
    )
    rows = run_contenders(made, cell_of, heads=tmp_path / "heads.safetensors")
    test = [r for r in rows if r["split"] == "test" and r["domain"] == "in"]
    by_heads = [r for r in test if r["method"] == "function vector"]
    assert by_heads and all(r["answer_rank_after"] == 0 < r["answer_rank_before"] for r in by_heads)
    # A state that is the same for all prompts says the same in all: no argument is left in it.
    tops = {}
    for row in rows:
        if row["method"] == "task vector" and row["start_layer"] > 0:
            tops.setdefault(row["start_layer"], set()).add(row["top_after"])
    assert tops and all(len(found) == 1 for found in tops.values())


def loaded(made):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    return load.engine_of(model, 256), Readout.load(made.readout), None


def test_contenders_are_of_tasks_whose_o_vectors_are_injected():
    model = {"m": {"source": "local", "path": "x", "layers": 2, "dtype": "float32"}}
    given = {"models": model, "tasks": {"capitals": {}, "antonyms": {}}}
    given |= {
        "interventions": {"tasks": ["capitals"]},
        "contenders": {"task_vectors": ["antonyms"]},
    }
    with pytest.raises(Problem, match="'antonyms' is not in interventions > tasks"):
        config.checked(given)
    given["contenders"] = {"function_vectors": ["capital"]}
    with pytest.raises(Problem, match="did you mean 'capitals'"):
        config.checked(given)


def test_contenders_report_other_tasks_as_out_of_domain(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path, test_prompts=None)
    elsewhere = write_prompts(stage, tmp_path, "verbs")
    write_tensors({"function_vector": torch.ones(D_MODEL)}, tmp_path / "heads.safetensors")
    options = {"heads": tmp_path / "heads.safetensors", "elsewhere": elsewhere}
    rows = [row for row in run_contenders(stage, made, **options) if row["split"] == "test"]
    strangers = {row["prompt_id"] for row in kept_rows(elsewhere, NOVEL)}
    own = unseen_prompts(made, "test")
    assert {(row["domain"], row["task"], row["prompt_id"]) for row in rows} == {
        *(("in", "towns", number) for number in own),
        *(("out", "verbs", number) for number in strangers),
    }
    assert own and strangers and {row["ovector_task"] for row in rows} == {"towns"}


def test_task_vectors_are_of_train_pairs_that_the_seed_draws(tiny_model, tmp_path):
    """And of none that a prompts file elsewhere asks about."""
    stage = tiny_model("gpt2")
    prompts = write_prompts(stage, tmp_path, rows=MANY)

    def shown_of(seed, *elsewhere):
        args = SimpleNamespace(model=stage.description, tokenizer=stage.tokenizer, prompts=prompts)
        args.elsewhere, args.task = elsewhere, tmp_path / "towns.yaml"
        args.settings = {"task": "towns", "seed": seed}
        return contenders.prompts_shown(args)

    assert shown_of(0) == shown_of(0) != shown_of(1) != []
    assert shown_of(0, prompts) == []


def test_no_argument_that_is_asked_about_elsewhere_is_shown(tiny_model, tmp_path):
    """Whatever its answer is there."""
    stage = tiny_model("gpt2")
    prompts = write_prompts(stage, tmp_path)
    first, *others = train_pool(prompts, [])
    # Words that no row of towns has: the argument alone is what they have in common.
    verbs = {first["argument"]: "ran"} | tiny.PASTS
    elsewhere = write_prompts(stage, tmp_path, "verbs", rows=verbs)
    asked = kept_rows(elsewhere, NOVEL)
    assert first["argument"] in {row["argument"] for row in asked}
    assert not {token for row in asked for token in row["answer_tokens"]} & {
        *first["answer_tokens"]
    }
    assert train_pool(prompts, [elsewhere]) == others != []


def test_demonstrations_of_many_to_one_relations_may_have_the_answer(tiny_model, tmp_path):
    """With two answers no other way shows both; templates take turns, as with any relation."""
    stage = tiny_model("gpt2")
    towns = itertools.cycle(["Paris", "Lima"])
    prompts = write_prompts(stage, tmp_path, rows=dict(zip(tiny.CAPITALS, towns)))
    pool = kept_rows(prompts, ("abstractive",))
    first = "What town has {argument}? It has {answer}."
    task = tasks.load(tmp_path / "towns.yaml", "towns")
    task = replace(
        task, kind="many-to-one", templates=[first, "The town of {argument} is {answer}."]
    )
    reader = Reader.of(stage.description, stage.tokenizer)
    sets = draw(task, reader, pool, 4, 10, 2, 0)
    for rows, begins in zip(sets, ("What town has", "The town of") * 2, strict=True):
        for row in rows:
            text = reader.tokenizer.decode(row["token_ids"])
            assert text.count(begins) == 1 + text.count(" Paris") + text.count(" Lima") > 10
            assert " Paris" in text and " Lima" in text
