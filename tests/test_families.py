"""Families that are like others: each in one test against the plain forward; and their own traps."""

import pytest
import torch

import tiny
from conftest import describe, main
from test_edits import Uses, assert_resumed, block_of, ffn_matrices, prompts_with, vectors_for
from test_models import final_norm
from test_states import assert_equal_states
from vecsweep.engine import edits, forward, load, proof
from vecsweep.engine.decoding import decode
from vecsweep.engine.edits import Edit
from vecsweep.engine.readout import Readout
from vecsweep.files import read_json
from vecsweep.methods.parts import neuron_parts

IDS = [7, 99, 300, 12, 45, 200, 31, 8, 77]
PARALLEL = {"stablelm-parallel", "cohere", "falcon", "falcon-two-norms"}
EXPERTS = {"mixtral", "qwen3_moe", "olmoe", "gpt_oss", "llama4_text"}


def described(kind, folder, dtype="float32"):
    """(model, engine, readout) of a tiny model that went through its files and stage models."""
    model = tiny.save(kind, folder / "source", shard_size="60KB")
    stage = describe(kind, folder / "source", folder / "described", dtype=dtype)
    assert main(stage.arguments) == 0
    load.check(stage.description, 1, "auto")
    engine = load.load(read_json(stage.description), stage.description, 64)
    return model, engine, Readout.load(stage.readout)


def plain_logits(model, states):
    """What the model's own head says of states [n, d_model], and what softmax is taken of."""
    config = model.config
    logits = model.get_output_embeddings()(final_norm(model)(states))
    if config.model_type == "cohere":
        return 2 * [logits * config.logit_scale]
    if config.model_type == "granite":
        return 2 * [logits / config.logits_scaling]
    if config.model_type == "gemma2":
        cap = config.final_logit_softcapping
        return logits, cap * torch.tanh(logits / cap)
    return logits, logits


@torch.inference_mode()
def assert_decoded(model, readout, states, prompts, last):
    """Ranks and probabilities at every layer, and the model's own logits at the last."""
    targets = [torch.tensor([[5]] * len(prompts)), torch.tensor([[7, 400]] * len(prompts))]
    for name, some in states.items():
        logits, capped = plain_logits(model, some)
        found = decode(readout, some, targets, 4, torch.tensor([3, 5]))
        for k, ids in enumerate(targets):
            best, place = logits.gather(1, ids).max(1)
            token = ids.gather(1, place[:, None])
            assert torch.equal(found.rank[:, k], (logits > best[:, None]).sum(1)), name
            probability = capped.softmax(1).gather(1, token)[:, 0]
            torch.testing.assert_close(found.probability[:, k], probability, rtol=1e-3, atol=0)
        assert torch.equal(found.top_token, logits.topk(4).indices)
        expected = capped.log_softmax(1)[:, [3, 5]]
        torch.testing.assert_close(found.among, expected, rtol=0, atol=1e-3)
    own = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in prompts])
    logits = readout.capped(readout.logits(readout.normed(states[f"resid_post.{last:02d}"])))
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)


def ffn_uses(engine, clean, edit):
    """How often a run under an edit uses layer 1's FFN's matrices."""
    if engine.model.config.model_type != "falcon":
        with Uses(ffn_matrices(engine.model, 1)) as seen:
            edits.resume(engine, clean, edit)
        return seen.count
    calls = []  # its linear layers take their weights by another name
    inner = block_of(engine.model, 1).mlp.dense_h_to_4h
    with forward.hooks([inner.register_forward_hook(lambda *called: calls.append(called))]):
        edits.resume(engine, clean, edit)
    return len(calls)


@pytest.mark.parametrize("kind", tiny.ALIKE)
def test_equals_a_plain_forward(kind, tmp_path):
    model, engine, readout = described(kind, tmp_path)
    assert engine.parallel == (kind in PARALLEL)
    found = proof.prove(engine, readout, IDS)
    assert max(found.stream, found.readout, found.runs) <= 1e-5
    # The shared beginning is longer than windows and chunks; four prompts go together, as many as
    # there are heads.
    prompts = prompts_with(11, (3, 2, 3, 3, 4, 3))
    states = forward.last_token_states(engine, [prompts, prompts_with(0, (9, 2))])
    every = prompts + prompts_with(0, (9, 2))
    assert_equal_states(states, model, every, engine.parallel)
    last = tiny.layers_of(kind) - 1
    assert_decoded(model, readout, states, every, last)

    for mode, position, sublayer in (
        ("replace", "all", "ffn"),
        ("add", "last", "ffn"),
        ("replace", "all", "attention"),
    ):
        edit = Edit(vectors_for(range(last // 2, last + 1)), mode, position, sublayer)
        assert_resumed(engine, prompts, edit, last_only=position == "last")
    (clean,) = edits.clean_runs(engine, prompts_with(6, (3, 3)), 1)
    for mode, used in (("replace", False), ("add", True)):  # the router alone may run
        assert bool(ffn_uses(engine, clean, Edit(vectors_for([1], 1), mode))) == used

    parts, constant = neuron_parts(engine, 1, prompts[0])
    assert (parts is None) == (kind in EXPERTS)
    if parts is not None:
        update = states["ffn_out.01"][0]
        torch.testing.assert_close(parts.sum(0) + constant, update, rtol=1e-4, atol=1e-5)
