"""Stage ablations: which layers go, and ranks equal to plain hooks on the whole model."""

import json

import pyarrow.parquet as pq
import pytest
import torch

import tiny
from conftest import command, main, run_stage
from test_edits import plain_run, sublayer_of
from vecsweep.layout import STAGES
from vecsweep.stages.ablations import PAPER, TWINS, removed_layers
from vecsweep.tasks.rows import CAPTURED, kept_rows

MARGIN = 1e-5


def rank_range(logits, tokens):
    """The lowest and highest rank of the best of some tokens that rounding allows."""
    margin = MARGIN * logits.abs().max()
    best = logits[tokens].max()
    return (logits > best + margin).sum().item(), (logits > best - margin).sum().item() - 1


@pytest.mark.parametrize(
    "layers, counts",
    [
        (24, [0, 4, 8, 12, 16, 20, 24]),
        (70, [0, 12, 24, 35, 47, 59, 70]),  # BLOOM: the paper removes 24 of 70
        (4, [0, 1, 2, 2, 3, 4, 4]),
        (18, [0, 3, 6, 9, 12, 15, 18]),
        (6, list(range(7))),
    ],
)
def test_exactly_the_top_sixths_go(layers, counts):
    # ceil(k * N / 6), written out.
    everything = list(range(layers))
    for step, count in enumerate(counts):
        assert removed_layers(layers, step, "top", 0) == everything[layers - count :]
        assert removed_layers(layers, step, "bottom", 0) == everything[:count]
        drawn = removed_layers(layers, step, "random", 0)
        assert len(drawn) == len(set(drawn)) == count and set(drawn) <= set(everything)
        if step:  # one order for all steps
            assert set(removed_layers(layers, step - 1, "random", 0)) <= set(drawn)


def test_random_layers_are_seeded():
    draws = {tuple(removed_layers(24, 2, "random", seed)) for seed in range(20)}
    assert len(draws) > 15
    assert removed_layers(24, 2, "random", 3) == removed_layers(24, 2, "random", 3)


def write_prompts(family, folder, task="towns", max_prompts=None, rows=None):
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": max_prompts})
    path = folder / f"{task}.parquet"
    run_stage(
        "prompts",
        model=family.description,
        task=tiny.write_task(folder, task, rows),
        settings=settings,
        output=path,
    )
    return path


def ablate(family, prompts, output, twins=True, max_prompts=None, batch_tokens=64):
    arguments = command(
        "ablations",
        model=family.description,
        readout=family.readout,
        prompts=prompts,
        batch_tokens=batch_tokens,
        settings={"max_prompts": max_prompts, "seed": 0, "twins": twins},
        output=output,
    )
    assert main(arguments) == 0
    return pq.read_table(output)


@torch.inference_mode()
def plain_means(model, prompts, layers):
    """layer -> mean FFN update over all tokens but the first of all prompts, in double."""
    tokens = {layer: [] for layer in range(layers)}
    handles = [
        sublayer_of(model, layer, "ffn").register_forward_hook(
            lambda module, args, output, kept=kept: kept.append(output.reshape(-1, 32)[1:].double())
        )
        for layer, kept in tokens.items()
    ]
    for ids in prompts:
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(kept).mean(0).float() for layer, kept in tokens.items()}


def test_equals_plain_hooks(family, tmp_path):
    prompts = write_prompts(family, tmp_path, max_prompts=3)
    rows = {(row["prompt_set"], row["prompt_id"]): row for row in kept_rows(prompts, CAPTURED)}
    layers = tiny.layers_of(family.kind)
    found = ablate(family, prompts, tmp_path / "out.parquet").to_pylist()
    means = plain_means(family.model, [row["token_ids"] for row in rows.values()], layers)
    kinds = (PAPER, *TWINS)
    keys = [
        (
            row["prompt_set"],
            row["prompt_id"],
            row["sublayer"],
            row["value"],
            row["order"],
            row["step"],
        )
        for row in found
    ]
    assert len(kinds) == 5 and len(keys) == len(set(keys))
    assert set(keys) == {(*key, *kind, step) for key in rows for kind in kinds for step in range(7)}
    known, sharp = {}, 0
    for row in found:
        prompt = rows[row["prompt_set"], row["prompt_id"]]
        removed = removed_layers(layers, row["step"], row["order"], 0)
        assert row["removed_layers"] == len(removed)
        assert row["fraction"] == pytest.approx(len(removed) / layers)
        key = (prompt["prompt_set"], prompt["prompt_id"], row["sublayer"], row["value"], *removed)
        if key not in known:
            zero = torch.zeros(32)
            changes = [
                (i, row["sublayer"], means[i] if row["value"] == "mean" else zero) for i in removed
            ]
            _, logits = plain_run(family.model, prompt["token_ids"], changes)
            known[key] = rank_range(logits, prompt["answer_tokens"])
        low, high = known[key]
        assert low <= row["rank"] <= high, key
        sharp += low == high
        assert row["correct"] == (row["rank"] == 0)
        assert (row["model"], row["task"]) == (family.kind, "towns")
    # The margin is not what lets a wrong rank through.
    assert sharp > 0.9 * len(found)


def test_removing_is_felt(family, tmp_path):
    # Ranks that no kind or step changed would agree with nothing edited.
    prompts = write_prompts(family, tmp_path, max_prompts=3)
    ranks = {}
    for row in ablate(family, prompts, tmp_path / "out.parquet").to_pylist():
        kind = (row["sublayer"], row["value"], row["order"])
        ranks.setdefault((kind, row["removed_layers"]), []).append(row["rank"])
    clean = ranks[PAPER, 0]
    for (kind, count), values in ranks.items():
        assert (values[: len(clean)] == clean) == (count == 0), (kind, count)
    full = tiny.layers_of(family.kind)
    assert len({tuple(ranks[kind, full]) for kind in (PAPER, TWINS[0], TWINS[3])}) == 3


def test_only_the_papers_kind_unless_asked(tiny_model, tmp_path):
    stage = tiny_model("gpt2")
    stage.kind = "gpt2"
    prompts = write_prompts(stage, tmp_path)
    table = ablate(stage, prompts, tmp_path / "out.parquet", twins=False, max_prompts=4)
    rows = table.to_pylist()
    assert (
        {(r["sublayer"], r["value"], r["order"]) for r in rows}
        == {PAPER}
        == {("ffn", "zero", "top")}
    )
    # The same seeded prompts of both sets: abstractive and extractive are compared pair by pair.
    chosen = {s: {r["prompt_id"] for r in rows if r["prompt_set"] == s} for s in CAPTURED}
    assert len(chosen["abstractive"]) == 4 and chosen["abstractive"] == chosen["extractive"]
    assert table.schema.metadata[b"step_version"] == str(STAGES["ablations"].version).encode()


def test_the_mean_is_over_all_prompts_of_both_sets(tiny_model, tmp_path):
    from vecsweep.engine import load
    from vecsweep.stages.ablations import mean_updates

    for kind in ("gpt2", "opt", "bloom", "gemma3_text"):
        stage = tiny_model(kind)
        stage.kind = kind
        rows = kept_rows(write_prompts(stage, tmp_path, max_prompts=4), CAPTURED)
        found = mean_updates(load.engine_of(stage.model, 64), rows)
        layers = tiny.layers_of(kind)
        expected = plain_means(stage.model, [row["token_ids"] for row in rows], layers)
        assert found.keys() == expected.keys()
        for layer, mean in found.items():
            torch.testing.assert_close(mean[0], expected[layer], rtol=1e-4, atol=1e-5)
