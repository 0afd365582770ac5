"""Families that are like others: each in one test against the plain forward; and their own traps."""

import itertools
from dataclasses import replace

import pytest
import torch

import tiny
from conftest import describe, main
from test_edits import Uses, assert_resumed, block_of, ffn_matrices, prompts_with, vectors_for
from test_models import final_norm
from test_states import assert_equal_states
from vecsweep import Problem
from vecsweep.engine import edits, forward, load, proof, sharded
from vecsweep.engine.checkpoint import Checkpoint
from vecsweep.engine.decoding import decode
from vecsweep.engine.edits import Edit
from vecsweep.engine.families import update_scale
from vecsweep.engine.readout import Readout
from vecsweep.files import read_json, write_json
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
        ("replace", "last", "block"),  # nothing multiplies it again
        ("add", "last", "block"),
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


def test_long_rope_takes_its_factors_by_the_whole_prompt(monkeypatch):
    """Prompts of 16 tokens and less have one set, longer ones the other, whatever they share."""
    model = tiny.model("phi3-long")
    engine = load.engine_of(model, 64)
    assert forward.rotary_switch(engine) == 16
    below, across, above = (
        prompts_with(prefix, lengths)
        for prefix, lengths in ((11, (2, 5, 4)), (11, (2, 9, 5, 6, 6)), (18, (3, 3, 1)))
    )
    assert [forward.shared_prefix(some, 16) for some in (below, across, above)] == [11, 0, 18]
    for prompts in (below, across, above):
        states = forward.last_token_states(engine, [prompts])
        assert_equal_states(states, model, prompts, parallel=False)
        edit = Edit(vectors_for([1]), position="last")  # of 17 tokens the last alone changes all
        assert_resumed(engine, prompts, edit, last_only=True)
        assert_resumed(engine, prompts, Edit(vectors_for([1])))
    monkeypatch.setattr(forward, "rotary_switch", lambda engine: None)
    with pytest.raises(AssertionError):
        states = forward.last_token_states(engine, [across])
        assert_equal_states(states, model, across, parallel=False)


def test_two_prompts_are_no_pair():
    # GPT-OSS's blocks unpack what the FFN gives: a tensor of two prompts would unpack too.
    engine, prompts = load.engine_of(tiny.model("gpt_oss"), 64), prompts_with(6, (3, 3))
    assert [len(clean.rows) for clean in edits.clean_runs(engine, prompts, 1)] == [2]
    assert engine.pairs == {0, 1, 2}
    for position, mode in itertools.product(("all", "last"), ("replace", "add")):
        assert_resumed(engine, prompts, Edit(vectors_for([1], 1), mode, position))
    many = [Edit(vectors_for([1], 1)), Edit(vectors_for([1], 1, seed=1), "add")]
    (clean,) = edits.clean_runs(engine, prompts, 1)
    for edit, found in zip(many, edits.resume_all(engine, clean, many)):
        torch.testing.assert_close(found, edits.resume(engine, clean, edit))


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_experts_do_not_hang_on_the_batch(kind):
    prompts = prompts_with(11, (3, 3, 3, 5))
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model = tiny.model(kind).to(dtype)
        together = forward.last_token_states(load.engine_of(model, 64), [prompts])
        alone = forward.last_token_states(load.engine_of(model, 1), [[ids] for ids in prompts])
        for name, state in together.items():
            assert (state - alone[name]).abs().max() <= most * alone[name].abs().max(), name


def test_engines_of_families_that_cannot_be_split():
    for model_type in {model_type for model_type, _ in tiny.ALIKE.values()} - {"gemma2"}:
        says = f"cannot split the family '{model_type}'; write engine: zero or auto"
        with pytest.raises(Problem, match=says):
            sharded.choose("tensor", 2, model_type, 4)
        assert sharded.choose("auto", 2, model_type, 4) == "zero"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_one_by_one_in_files(kind, tmp_path):
    """What ZeRO-3's processes read of them, and experts that are missing."""
    model = tiny.save(kind, tmp_path, shard_size="40KB")
    files = Checkpoint(tmp_path, model)
    files.check(model)
    for name, parameter in model.named_parameters():
        whole = parameter.detach().flatten()
        for start, stop in ((0, len(whole)), (3, len(whole) - 5), (len(whole) // 2, 10**9)):
            assert torch.equal(files.flat(files.key_of(name), start, stop), whole[start:stop]), name
    assert {name for name, _ in files.by_file(dict(model.named_parameters()))} == {
        name for name, _ in model.named_parameters()
    }
    index = tmp_path / "model.safetensors.index.json"
    content = read_json(index)
    key = next(key for key in content["weight_map"] if ".experts.1." in key)
    del content["weight_map"][key]
    write_json(content, index)
    with pytest.raises(
        Problem, match="'model.layers..*.mlp.experts.*_proj'.*; fetch the model again"
    ):
        Checkpoint(tmp_path, model).check(model)


@pytest.fixture
def both_ways(monkeypatch):
    """A Gemma 3 whose tokens see those after them."""
    settings = tiny.CONFIGS["gemma3_text"][1] | {"use_bidirectional_attention": True}
    monkeypatch.setitem(tiny._ALL, "both ways", ("gemma3_text", settings))
    return "both ways"


def test_attention_both_ways_is_refused(both_ways, tmp_path, refused):
    tiny.save(both_ways, tmp_path / "source")
    line = refused(describe(both_ways, tmp_path / "source", tmp_path / "described").arguments)
    assert "with use_bidirectional_attention tokens are told from those after them" in line
    assert "give a causal model" in line
    assert not any((tmp_path / "described").glob("*"))


def test_proof_refuses_what_a_shared_beginning_changes(both_ways):
    engine = load.engine_of(tiny.model(both_ways), 64)
    with pytest.raises(Problem, match="'gemma3_text': a shared beginning gives another state than"):
        proof.prove(engine, None, IDS)


@pytest.mark.parametrize(
    "kind, change, says",
    [
        ("bloom", {"per_head": ()}, "cannot be run by themselves"),
        ("llama", {"bypass": "mlp.act_fn.missing"}, "cannot be run by themselves"),
        ("granite", {"update_scale": None}, "layer 0: .* fails by"),
    ],
)
def test_proof_refuses_a_row_that_runs_otherwise(kind, change, says):
    engine = load.engine_of(tiny.model(kind), 64)
    engine.family = replace(engine.family, **change)
    engine.update_scale = update_scale(engine.family, engine.model.config)
    with pytest.raises(Problem, match=f"family '{kind}'.*{says}.*families.py") as caught:
        proof.prove(engine, None, IDS)
    assert len(str(caught.value).splitlines()) == 1


def test_proof_refuses_an_edit_that_is_not_a_hooks(monkeypatch):
    plain = edits._resume

    def off(engine, clean, some):
        return [1.01 * state for state in plain(engine, clean, some)]

    monkeypatch.setattr(edits, "_resume", off)
    with pytest.raises(Problem, match="a run resumed at a replaced FFN gives another state"):
        proof.prove(load.engine_of(tiny.model("llama"), 64), None, IDS)
