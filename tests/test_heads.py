"""Stage heads: what its table says of effects that are known, and which prompts they are of."""

import json

import pytest
import torch

from conftest import run_stage
from test_contenders import MANY, write_prompts
from vecsweep.files import read_table
from vecsweep.methods import heads
from vecsweep.stages import heads as stage
from vecsweep.tasks import shots


def test_a_tenth_of_many_heads_is_chosen():
    effects = torch.arange(28 * 16.0).view(28, 16)
    assert heads.chosen_heads(effects) == [(27, 15 - i) for i in range(10)]  # ten of GPT-J's 448
    assert len(heads.chosen_heads(torch.randn(18, 4))) == 2
    assert len(heads.chosen_heads(torch.randn(2, 2))) == 1


@pytest.mark.parametrize(
    "right, counts",
    [
        ([[0, 1, 2, 3, 4]] * 5, [2, 2, 2, 2, 2]),
        ([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3]], [9, 1]),
        ([[], [1, 2], [4]], [0, 2, 1]),
    ],
)
def test_effects_are_measured_in_ten_prompts_dealt_evenly(right, counts):
    found = heads.measured_in(right)
    assert list(map(len, found)) == counts and sum(counts) <= heads.MEASURED
    assert all(some == whole[: len(some)] for some, whole in zip(found, right))


def test_means_and_errors_of_known_effects(monkeypatch):
    """Five sets of five prompts that are answered correctly; two of each are measured."""
    sets = [[{"number": 5 * i + j} for j in range(5)] for i in range(5)]
    right = [list(range(5))] * 5
    effect = torch.randn(25, 3, 4, generator=torch.Generator().manual_seed(0))

    def effects(engine, readout, rows, means, progress, parts):
        numbers = [row["number"] for row in rows]
        return effect[numbers], torch.tensor([0.1 * n for n in numbers])

    monkeypatch.setattr(heads, "mean_outputs", lambda *given: (None, None, right, 0.75))
    monkeypatch.setattr(heads, "indirect_effects", effects)
    monkeypatch.setattr(heads, "vector_of", lambda engine, chosen, *given: chosen)
    rows, chosen = stage.measured(None, None, sets, "towns")
    measured = [0, 1, 5, 6, 10, 11, 15, 16, 20, 21]
    for row in rows:
        some = effect[measured, row["layer"], row["head"]]
        assert row["effect"] == pytest.approx(some.mean().item())
        assert row["effect_error"] == pytest.approx(some.std().item() / 10**0.5)
        assert (row["prompts"], row["shown_prompts"], row["shown_probability"]) == (10, 25, 0.75)
        assert row["shuffled_probability"] == pytest.approx(0.1 * sum(measured) / 10)
    best = effect[measured].mean(0)
    assert (
        chosen
        == [divmod(int(best.argmax()), 4)]
        == [(row["layer"], row["head"]) for row in rows if row["chosen"]]
    )


def test_an_answer_of_most_pairs_leaves_sets_with_wrong_ones(tiny_model, tmp_path, monkeypatch):
    """Drawn as they come, ten demonstrations of one answer can be given no wrong one."""
    made = tiny_model("gpt2")
    rows = {word: ("Paris", "Paris", "Paris", "Rome", "Lima")[i % 5] for i, word in enumerate(MANY)}
    prompts = write_prompts(made, tmp_path, rows=rows)
    asked = []

    def noted(*given, **options):
        asked.append(options)
        return shots.draw(*given, **options)

    monkeypatch.setattr(stage, "draw", noted)
    monkeypatch.setattr(stage.heads, "lacking", lambda engine: "nothing is measured here")
    settings = json.dumps({"task": "towns", "seed": 0})
    paths = {"vectors": tmp_path / "h.safetensors", "table": tmp_path / "h.parquet"}
    inputs = {"model": made.description, "readout": made.readout, "prompts": prompts}
    inputs |= {"tokenizer": made.description.with_name("tokenizer.json"), "batch_tokens": 64}
    run_stage("heads", **inputs, task=tmp_path / "towns.yaml", settings=settings, **paths)
    assert asked == [{"mixed": True}] and read_table(paths["table"]).num_rows == 0
