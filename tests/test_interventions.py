"""Stages interventions and selection: ranks equal to plain hooks on the whole model, the choice
on dev alone, and each control what its name says."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from conftest import command, main, run_stage
from test_ablations import rank_range, write_prompts
from test_edits import block_of, plain_run, sublayer_of
from test_ovectors import SEARCH
from test_states import plain_states
from vecsweep import Problem, tables
from vecsweep.engine import load
from vecsweep.engine.plans import end_layer
from vecsweep.files import read_table, write_tensors
from vecsweep.methods import Setting, controls, parts, plans_of
from vecsweep.stages import selection
from vecsweep.tasks.rows import NOVEL, capped, in_domain, kept_rows
from vecsweep.tools import bench

D_MODEL = 32
SETTINGS = SEARCH | {"scales": [1.0, 2.5], "dev_prompts": 3, "test_prompts": 3}


def cell(family, folder, donors=2, **settings):
    """Prompts of a tiny model, and made-up o-vectors of some of them with the mean as last."""
    prompts = write_prompts(family, folder)
    rows = kept_rows(prompts, NOVEL)
    pairs = [[row["prompt_id"], i % 2] for i, row in enumerate(rows[:donors])] + [[None, 1]]
    # As long as a tiny model's own updates: the effect is neither nil nor all there is.
    drawn = 2 * torch.randn(donors, D_MODEL, generator=torch.Generator().manual_seed(1))
    tensors = {
        "vectors": torch.cat([drawn, drawn.mean(0, keepdim=True)]),
        "directions": torch.linalg.svd(drawn, full_matrices=False).Vh,
    }
    vectors = folder / "vectors.safetensors"
    write_tensors(tensors, vectors, {"donors": json.dumps(pairs)})
    return SimpleNamespace(
        folder=folder,
        prompts=prompts,
        rows={row["prompt_id"]: row for row in rows},
        vectors=vectors,
        tensors=dict(zip(map(tuple, pairs), tensors["vectors"])),
        settings=SETTINGS | settings,
    )


def run_cell(stage, family, made, output, **options):
    """Run interventions or selection on a cell; the outcomes as rows."""
    output = made.folder / output
    inputs = {"model": family.description, "readout": family.readout, "prompts": made.prompts}
    inputs |= {"vectors": made.vectors, "settings": json.dumps(made.settings), "batch_tokens": 90}
    run_stage(stage, **inputs, **options, output=output)
    return read_table(output).to_pylist()


def assert_outcomes(model, rows, prompts, vector_of):
    """Ranks and top tokens before and after are those of plain runs, one prompt at a time."""
    sharp, plain = 0, {}
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        layers = range(row["start_layer"], row["end_layer"] + 1)
        vector = row["scale"] * vector_of(row)
        changes = [(layer, "ffn", vector) for layer in layers]
        before = plain.setdefault(row["prompt_id"], plain_run(model, prompt["token_ids"])[1])
        edited = plain_run(model, prompt["token_ids"], changes, row["mode"], row["position"])[1]
        for when, logits in (("before", before), ("after", edited)):
            targets = {"argument": [prompt["argument_token"]], "answer": prompt["answer_tokens"]}
            for target, tokens in targets.items():
                low, high = rank_range(logits, tokens)
                assert low <= row[f"{target}_rank_{when}"] <= high, row
                sharp += low == high
            assert logits[row[f"top_{when}"]] >= logits.max() - 1e-5 * logits.abs().max()
    # The margin is not what lets a wrong rank through.
    assert sharp > 0.9 * 4 * len(rows)


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
    # Every start layer up to the end, mode, scale, vector and dev prompt, once.
    keys = [
        (r["start_layer"], r["mode"], r["scale"], r["donor"], r["source_layer"], r["prompt_id"])
        for r in rows
    ]
    taken = {made.rows[donor]["argument"] for donor, _ in made.tensors if donor is not None}
    dev = {
        i for i, row in made.rows.items() if row["split"] == "dev" and row["argument"] not in taken
    }
    used = {row["prompt_id"] for row in rows}
    assert used <= dev and len(used) == 3
    donors = [(*pair, i) for pair in made.tensors for i in used]
    expected = itertools.product(range(end + 1), ("replace", "add"), (1.0, 2.5), donors)
    assert Counter(keys) == Counter((*front, *back) for *front, back in expected)
    assert {row["end_layer"] for row in rows} == {end}
    assert {(row["control"], row["split"], row["domain"], row["position"]) for row in rows} == {
        ("o-vector", "dev", "in", position)
    }
    assert {(r["model"], r["task"], r["ovector_task"]) for r in rows} == {
        (family.kind, "towns", "towns")
    }
    assert_outcomes(
        family.model, rows, made.rows, lambda row: made.tensors[row["donor"], row["source_layer"]]
    )
    # Ranks that no edit changed would agree with nothing edited.
    assert (
        sum(row["answer_rank_before"] != row["answer_rank_after"] for row in rows) > len(rows) / 2
    )


@pytest.mark.parametrize(
    "depth, layers, end", [(1, 24, 23), (0.5, 24, 11), (0.75, 4, 2), (0.01, 24, 0)]
)
def test_end_layer(depth, layers, end):
    assert end_layer({"end_depth": depth}, layers) == end


def pair(number, argument, split="dev", out_of_domain=False):
    return {
        "prompt_id": number,
        "argument": argument,
        "split": split,
        "out_of_domain": out_of_domain,
    }


def test_a_donors_argument_is_in_neither_half():
    rows = [
        pair(0, "cat"),
        pair(1, "dog", "test"),
        pair(2, "cow"),
        pair(3, "cat"),  # a second answer for the donor's argument
        pair(4, "hen", "test"),
        pair(5, "pig", out_of_domain=True),
        pair(6, "fox", "test", out_of_domain=True),
    ]
    donors = [(0, 2), (4, 3), (None, 2)]
    assert [row["prompt_id"] for row in in_domain(rows, donors, "dev")] == [2]
    assert [row["prompt_id"] for row in in_domain(rows, donors, "test")] == [1]
    assert [row["prompt_id"] for row in in_domain(rows, [], "dev")] == [0, 2, 3]


def test_a_cap_is_a_seeded_sample_in_order():
    rows = list(range(40))
    chosen = capped(rows, 7, 0)
    assert len(chosen) == 7 and chosen == sorted(chosen) == capped(rows, 7, 0)
    assert chosen != capped(rows, 7, 1)
    assert capped(rows, None, 0) == capped(rows, 40, 0) == rows and capped([], 3, 0) == []


def tried(start, ranks, mode="replace", scale=1.0, donor=4, layer=2):
    setting = {
        "start_layer": start,
        "mode": mode,
        "scale": scale,
        "donor": donor,
        "source_layer": layer,
    }
    return [setting | {"answer_rank_after": rank} for rank in ranks]


def test_the_largest_mean_reciprocal_rank_is_chosen():
    steady = tried(1, [1, 1, 1, 1])  # 1/2 on average, the lowest mean rank
    bold = tried(2, [0, 0, 400, 0], "add", 2.0, donor=None, layer=3)  # above 3/4
    weak = tried(0, [0, 9, 9, 9])
    rows = steady + bold + weak
    expected = {"start_layer": 2, "mode": "add", "scale": 2.0, "donor": None, "source_layer": 3}
    for seed in range(5):
        assert selection.choose(random.Random(seed).sample(rows, len(rows))) == expected


def test_of_equally_good_settings_the_lowest_start_is_chosen():
    rows = tried(5, [0, 1]) + tried(3, [1, 0]) + tried(4, [0, 1], "add") + tried(2, [1, 1])
    for seed in range(5):
        assert selection.choose(random.Random(seed).sample(rows, len(rows)))["start_layer"] == 3


def made_up_search(made, path, **best):
    """A search file in which one setting is best on the dev prompts, whatever the model does."""
    rows = []
    settings = itertools.product((0, 1, 2), ("replace", "add"), (1.0, 2.5), made.tensors)
    for start, mode, scale, (donor, layer) in settings:
        setting = {"start_layer": start, "mode": mode, "scale": scale}
        setting |= {"donor": donor, "source_layer": layer}
        rank = 0 if best.items() <= setting.items() else 50
        blank = dict.fromkeys(
            ("argument_rank_before", "argument_rank_after", "answer_rank_before"), 9
        )
        blank |= dict.fromkeys(
            ("model", "task", "ovector_task", "position", "control", "domain"), "x"
        )
        blank |= {"split": "dev", "prompt_id": 0, "end_layer": 2, "top_before": 1, "top_after": 1}
        blank |= {"repeat": None, "chosen": None}
        rows.append(blank | setting | {"answer_rank_after": rank})
    tables.write("interventions", rows, path)


def test_selection_reports_on_test_what_dev_chose(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path, test_prompts=None)
    donor = next(iter(made.tensors))
    elsewhere = write_prompts(stage, tmp_path, "verbs")
    strangers = {row["prompt_id"]: row for row in kept_rows(elsewhere, NOVEL)}
    best = {"start_layer": 1, "mode": "add", "scale": 2.5, "donor": donor[0]}
    made_up_search(made, tmp_path / "search.parquet", **best)
    options = {"search": tmp_path / "search.parquet", "elsewhere": elsewhere}
    rows = run_cell("selection", stage, made, "out.parquet", **options)
    taken = {made.rows[number]["argument"] for number, _ in made.tensors if number is not None}
    test = {i for i, r in made.rows.items() if r["split"] == "test" and r["argument"] not in taken}
    assert {row["split"] for row in rows} == {"test"}
    for domain, task, prompts in (("in", "towns", test), ("out", "verbs", set(strangers))):
        own = [row for row in rows if row["domain"] == domain]
        assert {row["prompt_id"] for row in own} == prompts
        assert {(row["task"], row["ovector_task"]) for row in own} == {(task, "towns")}
    chosen = [row for row in rows if row["control"] == "o-vector"]
    assert all(best.items() <= row.items() for row in chosen)
    assert len(chosen) == len(test) + len(strangers)
    # Donors beside it, at the same setting.
    donors = [row for row in rows if row["control"] in ("donor", "mean")]
    assert all((row["donor"] is None) == (row["control"] == "mean") for row in donors)
    assert {(row["donor"], row["source_layer"]) for row in donors} == set(made.tensors) - {donor}
    assert {(row["start_layer"], row["mode"], row["scale"]) for row in donors} == {(1, "add", 2.5)}

    def vector_of(row):
        if row["control"] == "zero":
            return torch.zeros(D_MODEL)
        return made.tensors[row["donor"], row["source_layer"]]

    known = [row for row in rows if row["control"] in ("o-vector", "donor", "mean", "zero")]
    for domain, prompts in (("in", made.rows), ("out", strangers)):
        own = [row for row in known if row["domain"] == domain]
        assert {row["control"] for row in own} == {"o-vector", "donor", "mean", "zero"}
        assert_outcomes(stage.model, own, prompts, vector_of)
    zero = [row for row in rows if row["control"] == "zero"]
    assert {(row["mode"], row["start_layer"], row["end_layer"]) for row in zero} == {
        ("replace", 1, 2)
    }


def test_controls_at_every_start_layer(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    made = cell(stage, tmp_path)
    made_up_search(made, tmp_path / "search.parquet", start_layer=1, mode="replace", scale=1.0)
    inputs = {"model": stage.description, "readout": stage.readout, "prompts": made.prompts}
    inputs |= {"vectors": made.vectors, "settings": json.dumps(made.settings), "batch_tokens": 90}
    inputs |= {"search": tmp_path / "search.parquet", "output": tmp_path / "out.parquet"}
    assert main(command("selection", **inputs, controls_over_layers=True)) == 0
    starts = {}
    for row in read_table(tmp_path / "out.parquet").to_pylist():
        assert row["chosen"] == (row["start_layer"] == 1)
        assert (row["repeat"] is None) == (row["control"] not in ("random", "unrelated"))
        key = (row["control"], row["donor"], row["repeat"], row["prompt_id"])
        starts.setdefault(key, []).append(row["start_layer"])
    for (control, *_), layers in starts.items():
        everywhere = control in ("o-vector", "random", "unrelated", "zero", "difference")
        assert sorted(layers) == ([0, 1, 2] if everywhere else [1]), control
    assert {"difference_once", "donor", "neurons_1", "directions_1"} < {key[0] for key in starts}


def planned(family, made, engine, rival=(), **chosen):
    """The plans of selection by control, for a chosen setting."""
    args = SimpleNamespace(
        settings=made.settings, prompts=made.prompts, vectors=made.vectors, rival=list(rival)
    )
    donors, vectors = list(made.tensors), torch.stack(list(made.tensors.values()))
    own = kept_rows(made.prompts, NOVEL)
    plans = plans_of(Setting.of(chosen, args, engine, own, vectors, donors))
    names = [plan.labels[0]["control"] for plan in plans]
    assert len(names) == len(set(names)), names
    assert all(len(plan.labels) == len(plan.vectors) for plan in plans)
    return dict(zip(names, plans))


def test_each_control_is_what_its_name_says(family, tmp_path):
    made = cell(family, tmp_path)
    rival = tmp_path / "rival.safetensors"
    rival_vectors = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(9))
    rival_notes = {"donors": json.dumps([[8, 1], [9, 2], [None, 1]])}
    write_tensors(
        {"vectors": rival_vectors, "directions": rival_vectors[:2].clone()}, rival, rival_notes
    )
    engine = load.engine_of(family.model, 64)
    donor, layer = next(iter(made.tensors))
    scale, last = 2.5, tiny.layers_of(family.kind) - 1
    chosen = {
        "start_layer": 1,
        "mode": "add",
        "scale": scale,
        "donor": donor,
        "source_layer": layer,
    }
    plans = planned(family, made, engine, [rival], **chosen)
    vector = made.tensors[donor, layer]
    parallel = engine.parallel
    for name, plan in plans.items():
        if name in ("zero", "difference_once"):
            continue
        # All at the chosen setting.
        assert (plan.start, plan.end, plan.mode, plan.position) == (1, last, "add", "all"), name
        assert {label["scale"] for label in plan.labels} == {scale}

    def vectors(name):
        return plans[name].vectors / (1 if name in ("zero", "difference_once") else scale)

    torch.testing.assert_close(vectors("o-vector"), vector[None])
    torch.testing.assert_close(vectors("donor"), torch.stack(list(made.tensors.values())[1:]))
    torch.testing.assert_close(vectors("rival"), rival_vectors[-1:])
    torch.testing.assert_close(vectors("random").norm(dim=-1), vector.norm().repeat(3))
    # Random: nothing to do with the vector or each other.
    directions = torch.cat([vectors("random"), vector[None]])
    cosines = (
        torch.nn.functional.normalize(directions) @ torch.nn.functional.normalize(directions).T
    )
    assert (cosines - torch.eye(4)).abs().max() < 0.6
    zero = plans["zero"]
    assert (zero.start, zero.end, zero.mode) == (1, last, "replace") and not zero.vectors.any()
    # The same FFN on nothing but the random words of a novel prompt.
    tokenizer, starts = tiny.tokenizer(), []
    for row in made.rows.values():
        words = row["text"].split(row["argument"])[0]
        ids = row["token_ids"][: (len(row["token_ids"]) - 2 * row["argument_length"]) // 3]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert words.startswith(text) and len(text) > len(words) / 2
        starts.append(plain_states(family.model, ids, parallel)[f"ffn_out.{layer:02d}"])
    assert len(vectors("unrelated")) == 3
    for found in vectors("unrelated"):
        assert any((s - found).abs().max() <= 1e-4 * s.abs().max() for s in starts)
    # About to say the answer minus about to say the argument, over the donors.
    means, donors = [], {number for number, _ in made.tensors}
    for prompt_set in ("abstractive", "novel"):
        rows = [r for r in kept_rows(made.prompts, (prompt_set,)) if r["prompt_id"] in donors]
        assert len(rows) == len(made.tensors) - 1
        states = [plain_states(family.model, r["token_ids"], parallel) for r in rows]
        means.append(torch.stack([s[f"resid_post.{layer:02d}"] for s in states]).mean(0))
    difference = (means[0] - means[1])[None]
    torch.testing.assert_close(vectors("difference"), difference, rtol=1e-4, atol=1e-4)
    once = plans["difference_once"]
    torch.testing.assert_close(once.vectors, difference, rtol=1e-4, atol=1e-4)
    assert (once.start, once.end, once.mode) == (1, 1, "add") and once.labels[0]["scale"] == 1
    # All directions of all eligible vectors give the vector back, one gives its share of it.
    torch.testing.assert_close(vectors("directions_all"), vector[None], rtol=1e-4, atol=1e-4)
    first = torch.linalg.svd(torch.stack(list(made.tensors.values())[:-1]), full_matrices=False).Vh[
        0
    ]
    torch.testing.assert_close(
        vectors("directions_1")[0], (vector @ first) * first, rtol=1e-4, atol=1e-4
    )


def test_unrelated_words_hold_nothing_of_a_long_argument(tiny_model):
    model = tiny_model("gpt2").model
    words, argument = [9, 30, 31], list(range(40, 52))
    row = {"token_ids": words + argument + words + argument + words, "argument_length": 12}
    setting = SimpleNamespace(engine=load.engine_of(model, 64), own=[row], layer=1, seed=0)
    setting.plan = lambda vectors, names: vectors
    (found,) = controls.unrelated(setting)
    plain = plain_states(model, words, parallel=False)["ffn_out.01"]
    torch.testing.assert_close(found, plain[None], rtol=1e-5, atol=1e-5)


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
    engine = load.engine_of(family.model, 64)
    donor, layer = next(iter(made.tensors))
    abstractive = kept_rows(made.prompts, ("abstractive",))
    ids = next(row["token_ids"] for row in abstractive if row["prompt_id"] == donor)
    parts, bias, update = plain_parts(family.model, ids, layer)
    # The donor's own o-vector, as stage ovectors would have cut it.
    made.tensors[donor, layer] = update
    chosen = {
        "start_layer": 0,
        "mode": "replace",
        "scale": 1.0,
        "donor": donor,
        "source_layer": layer,
    }
    plans = planned(family, made, engine, **chosen)
    order = sorted(range(len(parts)), key=lambda i: -(parts[i] @ update).item())
    sizes = {"neurons_1": 1, "neurons_10": 10, "neurons_all": len(parts)}
    sizes |= {"neurons_100": 100} if len(parts) > 100 else {}
    assert {name for name in plans if name.startswith("neurons")} == set(sizes)
    for name, size in sizes.items():
        kept = parts[order[:size]].sum(0) + bias
        torch.testing.assert_close(plans[name].vectors[0], kept, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plans["neurons_all"].vectors[0], update, rtol=1e-4, atol=1e-4)


def test_without_a_dev_prompt_nothing_is_injected(tiny_model, tmp_path):
    # Donors' pairs may be all there is: the table is empty, and selection finds nothing to report.
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    count = len(kept_rows(write_prompts(stage, tmp_path), NOVEL))
    made = cell(stage, tmp_path, donors=count)
    assert run_cell("interventions", stage, made, "search.parquet", first=0, last=2) == []
    search = tmp_path / "search.parquet"
    assert run_cell("selection", stage, made, "out.parquet", search=search) == []
    assert Path(tmp_path / "out.parquet").is_file()


def test_bench_compares_like_with_like(tiny_model, tmp_path, capsys):
    for kind in ("gpt2", "gptj", "gemma3_text"):
        stage = tiny_model(kind)
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / kind).symlink_to(stage.description.parent)
        options = ["--results", str(tmp_path), "--model", kind, "--repeats", "2", "--pairs", "4"]
        assert main(["bench", *options]) == 0
        first, _, *rows = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{kind}: ") and f"{tiny.layers_of(kind)} layers" in first
        assert [row.split(",")[0] for row in rows] == [
            "interventions",
            "states and lens",
            "states alone",
        ]
        assert all("equal" in row for row in rows[:2])
    assert main(["bench", "--results", str(tmp_path / "none")]) == 1
    assert "run `make` first" in capsys.readouterr().err


def test_bench_refuses_other_ranks():
    assert "2 ranks: 50.0% equal" in bench.check_ranks(
        "x", {"a": 4001, "b": 3, "c": 0}, {"a": 4000, "b": 3}
    )
    for wrong in ({"a": 4100, "b": 3}, {"a": 4000, "b": 5}, {"a": 4000}):
        with pytest.raises(Problem, match="^x: "):
            bench.check_ranks("x", wrong, {"a": 4000, "b": 3})
