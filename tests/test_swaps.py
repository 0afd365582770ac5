"""Stage swaps: who exchanges, and ranks equal to plain hooks on the whole model."""

import itertools
import json

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from conftest import run_stage
from test_ablations import rank_range, write_prompts
from test_edits import plain_run, sublayer_of
from vecsweep.bands import _part_band, add, add_swap_bands
from vecsweep.engine import load
from vecsweep.engine.edits import PARTS
from vecsweep.engine.readout import Readout
from vecsweep.files import PACKAGE, read_table
from vecsweep.stages.swaps import exchange, partners
from vecsweep.statistics import SEED, pair_band, shares, wilson
from vecsweep.tasks.rows import kept_rows

FOUND = {"function_layer": 1, "function_site": "ffn"}


def prompt(number, tokens=None, **changes):
    row = {"prompt_id": number, "answer_tokens": tokens or [100 + number], "out_of_domain": False}
    return row | {"template": 0} | changes


def stage(number, site="ffn", pattern="direct", **changes):
    row = {"prompt_set": "abstractive", "prompt_id": number, "pattern": pattern}
    return row | {"function_layer": number % 3, "function_site": site} | changes


def ids(rows):
    return [row["prompt_id"] for row in rows]


def test_partners_are_answered_correctly_and_in_domain():
    prompts = [prompt(0), prompt(1, out_of_domain=True), prompt(2), prompt(3), prompt(4)]
    stages = [stage(i) for i in range(4)]  # the last has none
    stages[2] = stage(2, None, "incorrect")
    stages.append(stage(4, prompt_set="extractive"))
    chosen = partners(prompts, stages, 10, 0)
    assert ids(chosen) == [0, 3]
    assert [row["function_layer"] for row in chosen] == [0, 0]
    assert partners(prompts[:3], stages, 10, 0) == []  # one alone has nobody to exchange with
    assert partners([], [], 10, 0) == []


def test_no_two_share_an_answer():
    # 0 and 1 share a token, 1 and 2 another: at most one of each two.
    prompts = [prompt(0, [5, 6]), prompt(1, [6, 7]), prompt(2, [7]), prompt(3), prompt(4)]
    sizes = set()
    for seed in range(20):
        chosen = partners(prompts, [stage(i) for i in range(5)], 10, seed)
        tokens = [token for row in chosen for token in row["answer_tokens"]]
        assert len(tokens) == len(set(tokens))
        sizes.add(tuple(ids(chosen)))
    # 0 and 3 have the commonest function layer, and go first.
    assert sizes == {(0, 2, 3, 4)}


def test_those_by_an_ffn_go_first():
    prompts = [prompt(i) for i in range(30)]
    sites = ["attention", "ffn", "joint", "both", "attention", "attention"]
    stages = [stage(i, sites[i % 6]) for i in range(30)]
    draws = set()
    for seed in range(5):
        chosen = partners(prompts, stages, 10, seed)
        assert {row["function_site"] for row in chosen} == {"ffn", "both"} and len(chosen) == 10
        # The commonest of those layers before all: five FFNs at 1, as many at 0.
        assert {row["function_layer"] for row in partners(prompts, stages, 5, seed)} == {0}
        assert chosen == partners(prompts, stages, 10, seed)
        draws.add(tuple(ids(partners(prompts, stages, 6, seed))))
        more = partners(prompts, stages, 12, seed)
        assert len(more) == 12 and {*ids(chosen)} < {*ids(more)}
    assert len(draws) > 2


def test_they_are_of_one_template():
    # A pair asked in several words: only prompts in the same words exchange.
    prompts, stages = [], []
    for template, right in ((0, 3), (1, 5), (2, 2)):
        for number in range(6):
            prompts.append(prompt(10 * template + number, template=template))
            pattern = "direct" if number < right else "incorrect"
            stages.append(stage(10 * template + number, pattern=pattern))
    chosen = partners(prompts, stages, 10, 0)
    assert ids(chosen) == [10, 11, 12, 13, 14] and {row["template"] for row in chosen} == {1}


@torch.inference_mode()
def plain_parts(model, prompt, layers, place=1):
    """(part, layer) -> what it gives at a token, from the end, of a bare forward [d_model]."""
    found, handles = {}, []
    for layer, (part, sublayer) in itertools.product(range(layers), PARTS.items()):

        def keep(module, args, output, key=(part, layer)):
            whole = output[0] if isinstance(output, tuple) else output
            found[key] = whole.reshape(-1, whole.shape[-1])[-place].clone()

        handles.append(sublayer_of(model, layer, sublayer).register_forward_hook(keep))
    model(torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_equals_plain_hooks(family, tmp_path):
    prompts = kept_rows(write_prompts(family, tmp_path, max_prompts=6), ("abstractive",))
    rows = [row | FOUND for row in prompts]
    assert len({len(row["token_ids"]) for row in rows}) > 1  # several batches
    engine, readout = load.engine_of(family.model, 64), Readout.load(family.readout)
    layers, count = tiny.layers_of(family.kind), len(rows)
    found = exchange(engine, readout, rows)
    keys = [(r["prompt_id"], r["other_id"], r["layer"], r["sublayer"]) for r in found]
    by_id = {row["prompt_id"]: row for row in rows}
    assert len(keys) == len(set(keys)) == count**2 * layers * 3 + count * layers * 2
    # Every pair, and every prompt without the part.
    assert set(keys) == {
        *itertools.product(by_id, by_id, range(layers), PARTS),
        *itertools.product(by_id, [None], range(layers), ("ffn", "attention")),
    }
    parts = {n: plain_parts(family.model, row["token_ids"], layers) for n, row in by_id.items()}
    clean = {n: plain_run(family.model, row["token_ids"])[1] for n, row in by_id.items()}
    sharp = changed = 0
    for row in found:
        number, other, layer, part = (
            row[k] for k in ("prompt_id", "other_id", "layer", "sublayer")
        )
        nothing = torch.zeros_like(parts[number][part, layer])
        change = (layer, PARTS[part], parts[other][part, layer] if other in parts else nothing)
        _, logits = plain_run(family.model, by_id[number]["token_ids"], [change], position="last")
        ranked = {number: row["own_rank"]} | ({other: row["others_rank"]} if other in parts else {})
        assert (row["others_rank"] is None) == (other is None)
        for whose, rank in ranked.items():
            low, high = rank_range(logits, by_id[whose]["answer_tokens"])
            assert low <= rank <= high, row
            sharp += low == high
        if number == other:  # its own output changes nothing
            torch.testing.assert_close(logits, clean[number], rtol=1e-4, atol=1e-4)
        elif other is not None:
            changed += bool((logits - clean[number]).abs().max() > 1e-2)
        assert row["outcome"] == (
            "own" if row["own_rank"] == 0 else "others" if row["others_rank"] == 0 else "neither"
        )
    assert sharp > 1.6 * len(found)
    # All prompts end in one token, which is all that the first FFN of a parallel block reads.
    assert changed >= count * (count - 1) * (layers * 3 - 1)


def test_a_state_brings_the_answer_along(family, tmp_path):
    # After the last block the other's state is all there is: ranks are those of its clean run.
    prompts = kept_rows(write_prompts(family, tmp_path, max_prompts=4), ("abstractive",))
    engine, readout = load.engine_of(family.model, 64), Readout.load(family.readout)
    found = exchange(engine, readout, [row | FOUND for row in prompts])
    last = [
        row
        for row in found
        if (row["layer"], row["sublayer"]) == (tiny.layers_of(family.kind) - 1, "state")
    ]
    clean = {
        row["prompt_id"]: row["own_rank"] for row in last if row["prompt_id"] == row["other_id"]
    }
    assert len(clean) == len(prompts)
    assert all(row["others_rank"] == clean[row["other_id"]] for row in last)


def chain(results, name, weights, task, layers, prompts=10):
    """Run the stages that lead to swaps and attribution in-process, in the workflow's layout."""
    described = results / "models" / name
    made = {"description": described / "model.json", "readout": described / "readout.safetensors"}
    run_stage(
        "models",
        settings={"source": "local", "path": str(weights), "dtype": "float32"}
        | {"layers": layers, "model": name},
        vocabulary=described / "vocabulary.parquet",
        **made,
    )
    inputs = {"model": made["description"], "readout": made["readout"]}

    def path(stage, ending="parquet"):
        return results / stage / name / f"{task.stem}.{ending}"

    asked = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": None})
    run_stage("prompts", model=inputs["model"], task=task, settings=asked, output=path("prompts"))
    inputs["prompts"] = path("prompts")
    states, lens = path("states", "safetensors"), results / "lens" / name / task.stem
    lens = lens / f"0-{layers - 1}.parquet"
    run_stage("states", **inputs, batch_tokens=2048, output=states)
    run_stage("lens", **inputs, states=states, first=0, last=layers - 1, output=lens)
    run_stage("stages", lens=lens, output=path("stages"))
    run_stage("attribution", **inputs, states=states, output=path("attribution"))
    how = {"batch_tokens": 2048, "settings": {"prompts": prompts, "seed": 0}}
    run_stage("swaps", **inputs, **how, stages=path("stages"), output=path("swaps"))
    return path


def run_behind(stage, results, name, path, settings):
    """Run one of the stages that read what `chain` made; the rows that it writes."""
    described = results / "models" / name
    run_stage(
        stage,
        model=described / "model.json",
        readout=described / "readout.safetensors",
        tokenizer=described / "tokenizer.json",
        prompts=path("prompts"),
        stages=path("stages"),
        settings=settings,
        batch_tokens=2048,
        output=path(stage),
    )
    return read_table(path(stage))


def test_a_model_that_answers_nothing_has_nothing_to_exchange(tmp_path):
    tiny.save("gpt2", tmp_path / "weights")
    task = tiny.write_task(tmp_path / "tasks", "towns")
    path = chain(tmp_path / "results", "random", tmp_path / "weights", task, 3)
    table = read_table(path("swaps"))
    assert table.num_rows == 0 and {"own_rank", "outcome"} <= {*table.column_names}
    # Attribution says of every prompt what it says, also of wrong ones.
    assert set(read_table(path("attribution"))["correct"].to_pylist()) == {False}


def brute_force(values, resamples):
    """(low, high) of the share over pairs of different items, item by item."""
    count, found = len(values), []
    for drawn in shares(count, resamples, SEED):
        times = np.rint(drawn * count).astype(int)
        items = [i for i in range(count) for _ in range(times[i])]
        pairs = [values[i][j] for i, j in itertools.product(items, items) if i != j]
        if pairs:
            found.append(np.mean(pairs))
    return np.quantile(found, [0.025, 0.975])


def test_band_of_pairs_is_over_their_items():
    generator = np.random.default_rng(1)
    for count, chance in ((7, 0.5), (10, 0.8), (4, 0.3)):
        values = (generator.random((count, count)) < chance).astype(float)
        share, low, high = pair_band(values, 300)
        assert share == pytest.approx(values[~np.eye(count, dtype=bool)].mean())
        # Never narrower than as many trials as there are items would be.
        ends, widest = brute_force(values, 300), wilson(share, count)
        expected = min(ends[0], widest[0]), max(ends[1], widest[1])
        assert (low, high) == pytest.approx(expected)
    # One prompt that never keeps its answer weighs as one of ten prompts, not as 9 of 90 pairs.
    values = np.ones((10, 10))
    values[0] = 0
    share, low, high = pair_band(values, 2000)
    independent = 2 * 1.96 * np.sqrt(0.9 * 0.1 / 90)
    assert share == pytest.approx(0.9) and high - low > 2 * independent


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("count", [2, 6, 10])
def test_no_interval_has_zero_width(value, count):
    # 90 pairs of 10 prompts that all agree are no 90 trials.
    share, low, high = pair_band(np.full((count, count), value), 200)
    assert share == value and (low, high) == pytest.approx(wilson(value, count))
    assert high - low == pytest.approx(3.8416 / (count + 3.8416))


def test_wilson():
    # Published values: 95 % intervals of 81 of 263 (Newcombe 1998) and of 0 of 10.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)


def test_the_band_without_a_layer_is_of_prompts_whose_answer_that_ffn_put_on_top():
    """Of the two groups each within itself; those by attention neither take nor give."""
    sites = {0: (1, "ffn"), 1: (1, "both"), 2: (1, "attention"), 3: (2, "ffn"), 4: (2, "ffn")}
    sites |= {5: (3, "ffn"), 6: (3, "attention")}
    groups = [{0, 1}, {3, 4}]
    rows = []
    for (taker, giver), layer in itertools.product(itertools.permutations(sites, 2), (1, 2, 3)):
        at, site = sites[taker]
        counted = at == layer and {taker, giver} in groups
        rows.append(
            {"model": "a", "task": "towns", "sublayer": "ffn", "layer": layer}
            | {"prompt_id": taker, "other_id": giver, "function_layer": at, "function_site": site}
            # All keep their own answer there, and nobody elsewhere.
            | {"outcome": "own" if counted else "others"}
        )
    with duckdb.connect() as connection:
        add(connection, "swaps", pd.DataFrame(rows))
        add_swap_bands(connection, 100, 0)
        found = connection.execute(
            "SELECT pairs, prompts, own, others FROM swap_bands WHERE layer IS NULL"
        ).fetchall()
    assert found == [(4, 4, 1, 0)]


@pytest.mark.parametrize(
    "changed, verdict",
    [
        ({"own_dropped": 0.7}, "idle"),
        ({"own_dropped": 0.4, "own_low": 0.6}, "function"),
        ({"own_dropped": 0.7, "own_low": 0.6}, "idle"),
        ({"own_dropped": 0.7, "others_low": 0.6}, "fact"),
        ({"own_low": 0.4}, "neither"),
        ({"own_low": 0.6, "prompts": 5}, "too few"),
    ],
)
def test_verdicts(changed, verdict):
    numbers = ("pairs", "own_high", "others_high", "own_dropped_low", "own_dropped_high")
    numbers += ("own", "own_low", "others", "others_low", "own_dropped")
    row = {"model": "a", "task": "towns", "sublayer": "ffn", "layer": None, "prompts": 6}
    ids = {"model": "a", "task": "towns", "function_layer": 1, "function_site": "ffn"}
    with duckdb.connect() as connection:
        add(connection, "swap_bands", pd.DataFrame([row | dict.fromkeys(numbers, 0.1) | changed]))
        add(connection, "swaps", pd.DataFrame([ids | {"prompt_id": i} for i in (0, 1)]))
        query = (PACKAGE / "sql" / "tables" / "swap_verdicts.sql").read_text()
        assert [r[-1] for r in connection.execute(query).fetchall()] == [verdict]


def test_shares_of_parts_are_of_the_lift():
    """From .2 the whole lifts to .8 and the part to .5: half of it, though .5 is more of .8."""
    rows = pd.DataFrame({"before": [0.2] * 30, "after": [0.5] * 30, "whole": [0.8] * 30})
    assert _part_band(rows, 100)[:3] == pytest.approx((0.5, 0.5, 0.5))
