"""Stages interventions and selection: ranks equal to plain hooks on the whole model, the choice
on dev alone for every method alike, and each method what its name says."""

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from conftest import run_stage
from test_ablations import rank_range, write_prompts
from test_edits import block_of, plain_run, sublayer_of
from test_ovectors import SEARCH
from test_states import plain_states
from vecsweep import tables
from vecsweep.engine import load
from vecsweep.engine.plans import end_layer
from vecsweep.files import read_table, write_tensors
from vecsweep.methods import METHODS, Donors, Material, candidates, controls, parts
from vecsweep.methods.grid import best_settings, start_layers
from vecsweep.tasks import rows as prompt_rows
from vecsweep.tasks.rows import NOVEL, capped, kept_rows, unseen

D_MODEL = 32
SETTINGS = SEARCH | {"scales": [1.0, 2.5], "dev_prompts": 3, "test_prompts": 3}


def cell(family, folder, donors=2, **settings):
    """Prompts of a tiny model, and made-up vectors of some train prompts: two source layers."""
    prompts = write_prompts(family, folder)
    rows = kept_rows(prompts, NOVEL)
    train = [row["prompt_id"] for row in rows if row["split"] == "train"]
    flips = {1: train[:donors], 0: train[donors : 2 * donors]}
    # As long as a tiny model's own updates: the effect is neither nil nor all there is.
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer, ids in flips.items():
        drawn = 2 * torch.randn(len(ids), D_MODEL, generator=generator)
        tensors |= {(number, layer): vector for number, vector in zip(ids, drawn)}
        tensors[None, layer] = drawn.mean(0)
    vectors = folder / "vectors.safetensors"
    write_vectors(vectors, tensors, flips)
    return SimpleNamespace(
        folder=folder,
        prompts=prompts,
        rows={row["prompt_id"]: row for row in rows},
        vectors=vectors,
        tensors=tensors,
        flips=flips,
        settings=SETTINGS | settings,
    )


def write_vectors(path, tensors, flips):
    """A file as stage ovectors makes it, of {(prompt_id, layer): vector}."""
    vectors = torch.stack(list(tensors.values()))
    drawn = torch.stack([v for (number, _), v in tensors.items() if number is not None])
    notes = {"donors": json.dumps(list(tensors)), "flips": json.dumps(flips)}
    directions = torch.linalg.svd(drawn, full_matrices=False).Vh
    write_tensors({"vectors": vectors, "directions": directions}, path, notes)


def run_cell(stage, family, made, output, **options):
    """Run interventions or selection on a cell; the outcomes as rows."""
    output = made.folder / output
    inputs = {"model": family.description, "readout": family.readout, "prompts": made.prompts}
    inputs |= {"vectors": made.vectors, "settings": json.dumps(made.settings), "batch_tokens": 90}
    run_stage(stage, **inputs, **options, output=output)
    return read_table(output).to_pylist()


def assert_outcomes(model, rows, prompts, vector_of):
    """Ranks and top tokens before and after are those of plain runs, one prompt at a time.

    So are the own answer's place among all answers of the task and both lifts.
    """
    sharp, plain = 0, {}
    answers = sorted({token for prompt in prompts.values() for token in prompt["answer_tokens"]})
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        layers = range(row["start_layer"], row["end_layer"] + 1)
        vector = row["scale"] * vector_of(row)
        mode, _, state = row["mode"].partition("_")
        changes = [(layer, "block" if state else "ffn", vector) for layer in layers]
        before = plain.setdefault(row["prompt_id"], plain_run(model, prompt["token_ids"])[1])
        edited = plain_run(model, prompt["token_ids"], changes, mode, row["position"])[1]
        own = prompt["answer_tokens"]
        others = [t for t in answers if t not in own and t != prompt["argument_token"]]
        assert (row["accepted"], row["alternatives"]) == (len(own), len(others))
        for when, logits in (("before", before), ("after", edited)):
            targets = {"argument": [prompt["argument_token"]], "answer": own}
            for target, tokens in targets.items():
                low, high = rank_range(logits, tokens)
                assert low <= row[f"{target}_rank_{when}"] <= high, row
                sharp += low == high
            assert logits[row[f"top_{when}"]] >= logits.max() - 1e-5 * logits.abs().max()
            margin = 1e-5 * logits.abs().max()
            low, high = (
                (logits[others] > logits[own].max() + side).sum() for side in (margin, -margin)
            )
            assert low <= row[f"place_{when}"] <= high
        start, end = (logits.log_softmax(-1) / math.log(2) for logits in (before, edited))
        assert row["own_lift"] == pytest.approx(
            (end[own].max() - start[own].max()).item(), abs=1e-3
        )
        lift = (end[others] - start[others]).mean().item()
        assert row["others_lift"] == pytest.approx(lift, abs=1e-3)
    # The margin is not what lets a wrong rank through.
    assert sharp > 0.9 * 4 * len(rows)


def unseen_prompts(made, split):
    """Novel prompts of a split that share no answer with a donor, or with what its prompt shows."""
    donors = [made.rows[number] for ids in made.flips.values() for number in ids]
    shown = {argument for row in donors for argument in row["demonstrations"].split("|")}
    named = [row for row in made.rows.values() if row["argument"] in shown]
    assert not named or {t for row in named for t in row["answer_tokens"]} <= {
        t for row in donors for t in row["shown_tokens"]
    }
    taken = {token for row in donors for token in row["answer_tokens"] + row["shown_tokens"]}
    return {
        number
        for number, row in made.rows.items()
        if row["split"] == split and not taken & set(row["answer_tokens"])
    }


def test_a_block_above_the_end_loads_no_model(family, tmp_path, monkeypatch):
    made = cell(family, tmp_path, end_depth=0.3)
    monkeypatch.setattr(load, "load", None)
    block = {"first": 1, "last": 2}
    assert run_cell("interventions", family, made, "above.parquet", **block) == []
    with pytest.raises(TypeError):  # it would be loaded for the layers below
        run_cell("interventions", family, made, "below.parquet", first=0, last=0)


@pytest.mark.parametrize("position, end_depth", [("all", 1), ("last", 0.7)])
def test_search_equals_plain_hooks(family, tmp_path, position, end_depth):
    made = cell(family, tmp_path, position=position, end_depth=end_depth)
    last = tiny.layers_of(family.kind) - 1
    end = {1: last, 0.7: 2 if last == 3 else 1}[end_depth]
    blocks = [(0, 1), (2, last)]
    rows = [
        row
        for first, until in blocks
        for row in run_cell(
            "interventions", family, made, f"{first}.parquet", first=first, last=until
        )
    ]
    # Every method, source layer, start layer up to the end, extent, mode, scale and dev prompt, once.
    names = ("method", "source_layer", "start_layer", "end_layer", "mode", "scale", "prompt_id")
    keys = Counter(tuple(row[name] for name in names) for row in rows)
    used = {row["prompt_id"] for row in rows}
    assert used <= unseen_prompts(made, "dev") and len(used) == min(
        3, len(unseen_prompts(made, "dev"))
    )
    expected = Counter()
    for start in range(end + 1):
        for stop in {start, end}:
            for number in used:
                expected["zero", None, start, stop, "replace", 1.0, number] += 1
                for method, layer, mode, scale in itertools.product(
                    ("o-vector", "mean", "difference", "unrelated", "random"),
                    (0, 1),
                    ("replace", "add"),
                    (1.0, 2.5),
                ):
                    expected[method, layer, start, stop, mode, scale, number] += 1
    assert keys == expected
    assert {(row["split"], row["domain"], row["position"]) for row in rows} == {
        ("dev", "in", position)
    }
    assert {(r["model"], r["task"], r["ovector_task"]) for r in rows} == {
        (family.kind, "towns", "towns")
    }
    # The o-vector's is the first donor of its layer.
    firsts = {layer: ids[0] for layer, ids in made.flips.items()}
    donors = {(r["source_layer"], r["donor"]) for r in rows if r["method"] == "o-vector"}
    assert donors == set(firsts.items())
    known = [row for row in rows if row["method"] in ("o-vector", "mean", "zero")]
    assert_outcomes(family.model, known, made.rows, known_vector(made))
    # Ranks that no edit changed would agree with nothing edited.
    assert (
        sum(row["answer_rank_before"] != row["answer_rank_after"] for row in known) > len(known) / 2
    )


def known_vector(made):
    """row -> the vector that it says was put in, of those that are cut from donors."""

    def vector_of(row):
        if row["method"] == "zero":
            return torch.zeros(D_MODEL)
        return made.tensors[row["donor"], row["source_layer"]]

    return vector_of


@pytest.mark.parametrize(
    "depth, layers, end", [(1, 24, 23), (0.5, 24, 11), (0.75, 4, 2), (0.01, 24, 0)]
)
def test_end_layer(depth, layers, end):
    assert end_layer({"end_depth": depth}, layers) == end


@pytest.mark.parametrize(
    "count, layers, depth, starts",
    [
        (None, 4, 1, [0, 1, 2, 3]),
        (9, 4, 1, [0, 1, 2, 3]),
        (3, 5, 1, [0, 2, 4]),
        (2, 30, 1, [0, 29]),
        (4, 30, 0.5, [0, 5, 9, 14]),
        (9, 18, 1, [0, 2, 4, 6, 8, 11, 13, 15, 17]),
    ],
)
def test_start_layers_are_spread_evenly(count, layers, depth, starts):
    assert start_layers({"start_layers": count, "end_depth": depth}, layers) == starts


def test_what_vectors_are_made_of_is_in_no_prompt():
    """Whatever the answers: no prompt shares an argument or a first token of an answer."""
    draw = random.Random(0)
    excluded = 0
    for _ in range(200):
        rows = [
            {
                "prompt_id": i,
                "argument": draw.choice("abcdefgh"),
                "answer_tokens": draw.sample(range(12), draw.randint(1, 3)),
                "demonstrations": "|".join(draw.sample("abcdefghij", draw.randint(0, 2))),
                "shown_tokens": draw.sample(range(12), draw.randint(0, 1)),
            }
            for i in range(draw.randint(1, 15))
        ]
        used = set(draw.sample(range(len(rows)), draw.randint(0, len(rows) // 3)))
        donors = [rows[i] for i in used]
        found = unseen(rows, rows, used)
        for row in rows:
            fair = all(
                row["argument"] not in (donor["argument"], *donor["demonstrations"].split("|"))
                and not set(row["answer_tokens"])
                & {*donor["answer_tokens"], *donor["shown_tokens"]}
                for donor in donors
            )
            assert (row in found) == fair
            excluded += not fair
    assert excluded > 100


def test_what_vectors_are_made_of_is_in_no_prompt_of_another_task(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    made = cell(stage, tmp_path)
    donors = [made.rows[number] for ids in made.flips.values() for number in ids]
    elsewhere = write_prompts(stage, tmp_path, "verbs")
    table = read_table(elsewhere).to_pylist()
    *clear, answers, asks = (row for row in table if row["prompt_set"] == "novel")
    answers["answer_tokens"].append(donors[0]["answer_tokens"][0])
    asks["argument"] = donors[-1]["argument"]
    tables.write("prompts", table, elsewhere)
    used = {row["prompt_id"] for row in donors}
    settings = made.settings | {"test_prompts": None}
    *_, (domain, found, _) = prompt_rows.test_prompts(
        [*made.rows.values()], used, [elsewhere], settings
    )
    assert domain == "out" and clear
    assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in clear]


def test_a_cap_is_a_seeded_sample_in_order():
    rows = list(range(40))
    chosen = capped(rows, 7, 0)
    assert len(chosen) == 7 and chosen == sorted(chosen) == capped(rows, 7, 0)
    assert chosen != capped(rows, 7, 1)
    assert capped(rows, None, 0) == capped(rows, 40, 0) == rows and capped([], 3, 0) == []


def tried(start, ranks, method="o-vector", **changes):
    setting = {"source_layer": 2, "start_layer": start, "end_layer": 7, "mode": "replace"}
    setting |= {"scale": 1.0, "method": method} | changes
    return [setting | {"answer_rank_after": rank} for rank in ranks]


def test_each_method_gets_its_largest_mean_reciprocal_rank():
    steady = tried(1, [1, 1, 1, 1])  # 1/2 on average, the lowest mean rank
    bold = tried(2, [0, 0, 400, 0], mode="add", scale=2.0, source_layer=3)  # above 3/4
    weak = tried(0, [0, 9, 9, 9])
    other = tried(6, [5, 5, 5, 5], "random") + tried(4, [9, 9, 9, 9], "random")
    zero = tried(3, [2, 2, 2, 2], "zero", source_layer=None, end_layer=3)
    rows = steady + bold + weak + other + zero
    best = {"source_layer": 3, "start_layer": 2, "end_layer": 7, "mode": "add", "scale": 2.0}
    for seed in range(5):
        found = best_settings(random.Random(seed).sample(rows, len(rows)))
        assert found["o-vector"] == best
        assert found["random"]["start_layer"] == 6
        assert (found["zero"]["source_layer"], found["zero"]["end_layer"]) == (None, 3)
        assert set(found) == {"o-vector", "random", "zero"}


def test_of_equally_good_settings_the_plainest_is_chosen():
    rows = tried(5, [0, 1]) + tried(3, [1, 0], end_layer=3) + tried(3, [1, 0])
    rows += tried(3, [0, 1], mode="add") + tried(4, [0, 1], mode="add") + tried(2, [1, 1])
    for seed in range(5):
        best = best_settings(random.Random(seed).sample(rows, len(rows)))["o-vector"]
        assert (best["start_layer"], best["end_layer"], best["mode"]) == (3, 7, "replace")


def made_up_search(made, path, best):
    """A search file in which each method has one best setting, whatever the model does."""
    rows = []
    for method, setting in best.items():
        blank = dict.fromkeys(
            ("argument_rank_before", "argument_rank_after", "answer_rank_before"), 9
        )
        blank |= dict.fromkeys(("model", "task", "ovector_task", "position", "domain"), "x")
        blank |= {"split": "dev", "prompt_id": 0, "top_before": 1, "top_after": 1}
        blank |= dict.fromkeys(("donor", "repeat", "others_lift"))
        blank |= dict.fromkeys(("accepted", "alternatives", "place_before", "place_after"), 1)
        blank |= {"method": method, "own_lift": 0.0}
        worse = setting | {"start_layer": setting["start_layer"] + 1, "end_layer": 2}
        rows += [blank | setting | {"answer_rank_after": 0}]
        rows += [blank | worse | {"answer_rank_after": 50}]
    tables.write("interventions", rows, path)


BEST = {"source_layer": 1, "start_layer": 0, "end_layer": 2, "mode": "add", "scale": 2.5}
OTHER = {"source_layer": 0, "start_layer": 1, "end_layer": 1, "mode": "replace", "scale": 1.0}


def test_selection_reports_each_method_at_its_own_best(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path, test_prompts=None)
    elsewhere = write_prompts(stage, tmp_path, "verbs")
    strangers = {row["prompt_id"]: row for row in kept_rows(elsewhere, NOVEL)}
    best = {"o-vector": BEST, "mean": OTHER, "zero": OTHER | {"source_layer": None}}
    best |= {"random": BEST | {"source_layer": 0}, "difference": OTHER, "unrelated": BEST}
    made_up_search(made, tmp_path / "search.parquet", best)
    options = {"search": tmp_path / "search.parquet", "elsewhere": elsewhere}
    rows = run_cell("selection", stage, made, "out.parquet", **options)
    test = unseen_prompts(made, "test")
    assert {row["split"] for row in rows} == {"test"} and test
    for domain, task, prompts in (("in", "towns", test), ("out", "verbs", set(strangers))):
        own = [row for row in rows if row["domain"] == domain]
        assert {row["prompt_id"] for row in own} == prompts
        assert {(row["task"], row["ovector_task"]) for row in own} == {(task, "towns")}
    # The o-vector's other donors and its parts stand at its setting, all else at its own.
    for row in rows:
        kind = row["method"].split("_")[0]
        setting = BEST if kind in ("donor", "neurons", "directions") else best[row["method"]]
        assert setting.items() <= row.items(), row["method"]
    vectors = {}
    for row in rows:
        if row["domain"] == "in":
            key = (row["donor"], row["repeat"])
            vectors.setdefault(row["method"], Counter())[key] += 1
    assert all(set(count.values()) == {len(test)} for count in vectors.values())
    first, *others = made.flips[1]
    assert set(vectors["o-vector"]) == {(first, None)}
    assert set(vectors["donor"]) == {(number, None) for number in others}
    assert set(vectors["random"]) == {(None, i) for i in range(20)}
    assert set(vectors["unrelated"]) == {(None, i) for i in range(5)}
    assert set(vectors["mean"]) == set(vectors["zero"]) == set(vectors["difference"])
    assert {"neurons_1", "neurons_all", "directions_1"} < set(vectors)
    known = [row for row in rows if row["method"] in ("o-vector", "donor", "mean", "zero")]
    for domain, prompts in (("in", made.rows), ("out", strangers)):
        own = [row for row in known if row["domain"] == domain]
        assert {row["method"] for row in own} == {"o-vector", "donor", "mean", "zero"}
        assert_outcomes(stage.model, own, prompts, known_vector(made))


def material(family, made, rival=()):
    """What methods make their vectors from, on a tiny model."""
    args = SimpleNamespace(settings=made.settings, prompts=made.prompts, rival=list(rival))
    own = kept_rows(made.prompts, NOVEL)
    return Material.of(args, load.engine_of(family.model, 64), own, Donors(made.vectors))


def stacked(vectors):
    return torch.stack([vector.value for vector in vectors])


def test_each_method_is_what_its_name_says(family, tmp_path):
    made = cell(family, tmp_path)
    rival = tmp_path / "rival.safetensors"
    drawn = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(9))
    write_vectors(rival, {(8, 2): drawn[0], (None, 2): drawn[1]}, {2: [8]})
    found = material(family, made, [rival])
    parallel = found.engine.parallel
    searched = candidates(found)
    keys = [(v.method, v.source_layer) for v in searched]
    # One a source layer, the commonest first; the rival has one layer, zero none.
    names = ("o-vector", "mean", "difference", "unrelated", "random")
    assert sorted(keys, key=str) == sorted(
        [*itertools.product(names, (0, 1)), ("rival", 2), ("zero", None)], key=str
    )
    for layer, ids in made.flips.items():
        first = made.tensors[ids[0], layer]
        (single,) = METHODS["o-vector"].search(found, layer)
        torch.testing.assert_close(single.value, first)
        (mean,) = METHODS["mean"].search(found, layer)
        torch.testing.assert_close(mean.value, made.tensors[None, layer])
        others = METHODS["rival"].search(found, layer)
        assert len(others) == (layer == 1)  # it has one source layer, for our commonest
        for other in others:
            torch.testing.assert_close(other.value, drawn[1])
        # Random: as long as the donor's, and nothing to do with it or each other.
        random_ones = METHODS["random"].report(found, layer)
        assert len(random_ones) == 20
        directions = torch.cat([stacked(METHODS["random"].search(found, layer)), first[None]])
        directions = torch.cat([stacked(random_ones), directions])
        torch.testing.assert_close(directions.norm(dim=-1), first.norm().repeat(22))
        directions = torch.nn.functional.normalize(directions)
        assert (directions @ directions.T - torch.eye(22)).abs().max() < 0.8
        # About to say the answer minus about to say the argument, over the layer's donors.
        means = []
        for prompt_set in ("abstractive", "novel"):
            rows = [r for r in kept_rows(made.prompts, (prompt_set,)) if r["prompt_id"] in ids]
            assert len(rows) == len(ids)
            states = [plain_states(family.model, r["token_ids"], parallel) for r in rows]
            means.append(torch.stack([s[f"resid_post.{layer:02d}"] for s in states]).mean(0))
        (difference,) = METHODS["difference"].search(found, layer)
        expected = means[0] - means[1]
        torch.testing.assert_close(difference.value, expected, rtol=1e-4, atol=1e-4)
        # The same FFN on nothing but the random words of a novel prompt.
        tokenizer, starts = tiny.tokenizer(), []
        for row in made.rows.values():
            words = row["text"].split(row["argument"])[0]
            ids = row["token_ids"][: (len(row["token_ids"]) - 2 * row["argument_length"]) // 3]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert words.startswith(text) and len(text) > len(words) / 2
            starts.append(plain_states(family.model, ids, parallel)[f"ffn_out.{layer:02d}"])
        unrelated = METHODS["unrelated"].report(found, layer)
        assert len(unrelated) == 5
        for vector in (*METHODS["unrelated"].search(found, layer), *unrelated):
            assert any((s - vector.value).abs().max() <= 1e-4 * s.abs().max() for s in starts)
    (zero,) = METHODS["zero"].search(found, 1)
    assert not zero.value.any() and METHODS["zero"].modes == ("replace",)


def test_random_vectors_are_each_tasks_own(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    drawn = {}
    for task in ("towns", "verbs"):
        made = cell(stage, tmp_path / task, task=task)
        drawn[task] = stacked(METHODS["random"].report(material(stage, made), 1))
    every = torch.nn.functional.normalize(torch.cat(list(drawn.values())))
    assert (every @ every.T - torch.eye(40)).abs().max() < 0.9


def test_directions_are_of_the_donors_alone(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path)
    donor = made.flips[1][0]
    found = {v.method: v.value for v in parts.largest(material(stage, made), 1, donor)}
    vector = made.tensors[donor, 1]
    # All of them give the vector back, one gives its share of it.
    torch.testing.assert_close(found["directions_all"], vector, rtol=1e-4, atol=1e-4)
    drawn = torch.stack([v for (number, _), v in made.tensors.items() if number is not None])
    first = torch.linalg.svd(drawn, full_matrices=False).Vh[0]
    torch.testing.assert_close(
        found["directions_1"], (vector @ first) * first, rtol=1e-4, atol=1e-4
    )


def test_unrelated_words_hold_nothing_of_a_long_argument(tiny_model):
    model = tiny_model("gpt2").model
    words, argument = [9, 30, 31], list(range(40, 52))
    row = {"token_ids": words + argument + words + argument + words, "argument_length": 12}
    made = SimpleNamespace(engine=load.engine_of(model, 64), own=[row], seed=0)
    (found,) = controls.unrelated(made, 1)
    plain = plain_states(model, words, parallel=False)["ffn_out.01"]
    torch.testing.assert_close(found.value, plain, rtol=1e-5, atol=1e-5)


def test_unrelated_words_of_the_report_are_not_those_of_the_search(monkeypatch):
    """By chance the first of both may be the same, but not at every seed."""

    def words(engine, prompts):
        return {"ffn_out.01": torch.tensor(prompts)[:, 0]}

    monkeypatch.setattr(controls, "last_token_states", words)
    own = [{"token_ids": [i, 90, i, 90, i], "argument_length": 1} for i in range(40)]
    drawn = []
    for seed in range(5):
        made = SimpleNamespace(engine=None, own=own, seed=seed)
        (search,), report = controls.unrelated(made, 1), controls.unrelated_several(made, 1)
        drawn.append((search.value.item(), report[0].value.item()))
    assert any(search != report for search, report in drawn)
    assert len({search for search, _ in drawn}) > 1 < len({report for _, report in drawn})


# The matrix from the FFN's neurons to the stream, and where its output goes through a norm.
DOWN = {
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt_neox": "mlp.dense_4h_to_h",
    "bloom": "mlp.dense_4h_to_h",
    "opt": "fc2",
}


@torch.inference_mode()
def plain_parts(model, ids, layer):
    """(parts [neurons, d_model], output bias, FFN update) at the last token, by plain hooks."""
    family = model.config.model_type
    down = block_of(model, layer).get_submodule(DOWN.get(family, "mlp.down_proj"))
    seen = {}
    handles = [
        down.register_forward_pre_hook(lambda module, args: seen.update(inner=args[0])),
        down.register_forward_hook(lambda module, args, output: seen.update(total=output)),
        sublayer_of(model, layer, "ffn").register_forward_hook(
            lambda module, args, output: seen.update(update=output)
        ),
    ]
    model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    inner, total, update = (seen[k].flatten(0, -2)[-1] for k in ("inner", "total", "update"))
    weight = down.weight if family == "gpt2" else down.weight.T
    # Neuron by neuron: what the matrix makes of it alone.
    parts = torch.stack([activation * row for activation, row in zip(inner, weight)])
    bias = torch.zeros(D_MODEL) if getattr(down, "bias", None) is None else down.bias
    if family == "gemma3_text":  # the norm behind scales what comes out, component by component
        parts = parts * (update / total)
    return parts, bias, update


def test_parts_of_neurons_sum_to_the_update(family, tmp_path):
    ids = kept_rows(write_prompts(family, tmp_path, max_prompts=3), ("abstractive",))[0][
        "token_ids"
    ]
    engine = load.engine_of(family.model, 64)
    for layer in range(tiny.layers_of(family.kind)):
        shares, constant = parts.neuron_parts(engine, layer, ids)
        plain, bias, update = plain_parts(family.model, ids, layer)
        assert len(shares) in (48, 128)
        torch.testing.assert_close(shares, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(constant, bias, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shares.sum(0) + constant, update, rtol=1e-4, atol=1e-4)
        states = plain_states(family.model, ids, engine.parallel)
        torch.testing.assert_close(update, states[f"ffn_out.{layer:02d}"], rtol=1e-4, atol=1e-4)


def test_the_largest_neurons_are_kept(family, tmp_path):
    made = cell(family, tmp_path)
    donor = made.flips[1][0]
    abstractive = kept_rows(made.prompts, ("abstractive",))
    ids = next(row["token_ids"] for row in abstractive if row["prompt_id"] == donor)
    neurons, bias, update = plain_parts(family.model, ids, 1)
    # The donor's own o-vector, as stage ovectors would have cut it.
    write_vectors(made.vectors, made.tensors | {(donor, 1): update}, made.flips)
    found = {v.method: v for v in parts.largest(material(family, made), 1, donor)}
    order = sorted(range(len(neurons)), key=lambda i: -(neurons[i] @ update).item())
    sizes = {"neurons_1": 1, "neurons_10": 10, "neurons_all": len(neurons)}
    sizes |= {"neurons_100": 100} if len(neurons) > 100 else {}
    assert {name for name in found if name.startswith("neurons")} == set(sizes)
    for name, size in sizes.items():
        kept = neurons[order[:size]].sum(0) + bias
        torch.testing.assert_close(found[name].value, kept, rtol=1e-4, atol=1e-4)
        assert (found[name].donor, found[name].source_layer) == (donor, 1)
    torch.testing.assert_close(found["neurons_all"].value, update, rtol=1e-4, atol=1e-4)


def test_without_a_dev_prompt_nothing_is_injected(tiny_model, tmp_path):
    # Donors' answers may be all there are: the table is empty, and selection has nothing to report.
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path)
    write_vectors(made.vectors, made.tensors, made.flips | {5: list(made.rows)})
    assert run_cell("interventions", stage, made, "search.parquet", first=0, last=2) == []
    search = tmp_path / "search.parquet"
    assert run_cell("selection", stage, made, "out.parquet", search=search) == []
    assert Path(tmp_path / "out.parquet").is_file()
