"""Stage states: equal to a plain forward, prompt by prompt, whatever the batches and the prefix."""

import itertools
import json
import random
import shutil

import pytest
import torch

import tiny
from conftest import command, describe, main, run_stage
from test_models import final_norm
from vecsweep import Problem
from vecsweep.engine import forward, load
from vecsweep.engine.batches import PASS, equal_length_batches, filled
from vecsweep.files import Tensors, provenance, write_tensors
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, prompt_groups, token_hash

# The module whose output is (or contains) attention's update, by family; see `plain_states`.
ATTENTION = {
    "gpt2": "attn",
    "gptj": "attn",
    "gpt_neox": "attention",
    "bloom": "self_attention",
    "gemma3_text": "post_attention_layernorm",
    "gemma2": "post_attention_layernorm",
    "olmo2": "post_attention_layernorm",
    "olmo3": "post_attention_layernorm",
    "glm4": "post_self_attn_layernorm",
    "falcon": "self_attention",
    "mpt": "attn",
}
BLOCKS = {
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mpt": "transformer.blocks",
}


@torch.inference_mode()
def plain_states(model, ids, parallel):
    """States of one prompt by a bare forward: no batch, no cache, and not the engine's hooks.

    The stream between blocks is transformers' own `hidden_states` and the final norm's input.
    Only attention's update is hooked; the FFN's follows as what is missing to the next block.
    """
    family = model.config.model_type
    seen = {}
    default = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    blocks = model.get_submodule(BLOCKS.get(family, default))
    handles = [
        final_norm(model).register_forward_pre_hook(lambda module, args: seen.update(last=args[0]))
    ]
    for layer, block in enumerate(blocks):
        handles.append(
            block.get_submodule(ATTENTION.get(family, "self_attn")).register_forward_hook(
                lambda module, args, output, layer=layer: seen.update({layer: output})
            )
        )
    output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    stream = [*output.hidden_states[:-1], seen["last"]]
    assert len(stream) == len(blocks) + 1
    states = {}
    for layer in range(len(blocks)):
        update = seen[layer][0] if isinstance(seen[layer], tuple) else seen[layer]
        update = update * getattr(model.config, "residual_multiplier", 1)  # Granite
        before, after = stream[layer], stream[layer + 1]
        middle = update if family == "bloom" else before + update  # BLOOM adds inside attention
        parts = {"resid_pre": before, "ffn_out": after - middle, "resid_post": after}
        if not parallel:
            parts["resid_mid"] = middle
        states |= {f"{site}.{layer:02d}": tensor[0, -1] for site, tensor in parts.items()}
    return states


def assert_equal_states(found, model, prompts, parallel, tolerance=1e-5, drop="nothing"):
    """Every site, layer and prompt within `tolerance` of the largest entry."""
    expected = [
        {k: v for k, v in plain_states(model, ids, parallel).items() if not k.startswith(drop)}
        for ids in prompts
    ]
    assert found.keys() == expected[0].keys()
    for name, tensor in found.items():
        plain = torch.stack([states[name] for states in expected])
        assert tensor.shape == plain.shape
        assert (tensor - plain).abs().max() <= tolerance * plain.abs().max(), name


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def groups_of_prompts():
    """Three groups: a long shared beginning and mixed lengths, one prompt, short unequal ones."""
    draw = random.Random(3)

    def tokens(count):
        return [draw.randrange(2, tiny.VOCABULARY) for _ in range(count)]

    shared = tokens(11)  # longer than the sliding windows
    lengths = [4, 1, 7, 4, 4, 2, 7, 4, 1]
    return [[shared + tokens(n) for n in lengths], [tokens(9)], [tokens(n) for n in (3, 1, 5)]]


@pytest.mark.parametrize("batch_tokens", [1, 9, 4096])
def test_equals_a_plain_forward(family, batch_tokens):
    groups = groups_of_prompts()
    engine = load.engine_of(family.model, batch_tokens)
    done, before = [], hooks_of(family.model)
    found = forward.last_token_states(engine, groups, lambda *counts: done.append(counts))
    assert hooks_of(family.model) == before
    prompts = [ids for group in groups for ids in group]
    assert_equal_states(found, family.model, prompts, engine.parallel)
    assert sum(count for count, _ in done) == len(prompts)
    # The shared beginning is run once: 11 tokens, and 8 of the lone prompt, and nothing twice.
    assert sum(tokens for _, tokens in done) == 11 + sum([4, 1, 7, 4, 4, 2, 7, 4, 1]) + 9 + 9
    assert max((tokens for count, tokens in done if count > 1), default=0) <= batch_tokens


@pytest.mark.parametrize(
    "groups",
    [
        [[[5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [5]]],
        [[[5, 6, 7, 8, 9, 11, 12], [5, 6, 7, 8, 9, 11, 12, 30, 31]]],
        [[[40]], [[40, 41]], [[40, 41]]],
        [[[9, 9, 9, 9, 9, 9, 9]] * 3],
    ],
    ids=["prefixes", "long-prefix", "one-token", "equal"],
)
@pytest.mark.parametrize("kind", ["gpt2", "bloom", "mistral", "gemma3_text"])
def test_prompts_inside_each_other(tiny_model, kind, groups):
    model = tiny_model(kind).model
    found = forward.last_token_states(load.engine_of(model, 64), groups)
    prompts = [ids for group in groups for ids in group]
    assert_equal_states(found, model, prompts, parallel=False)


def test_batches_are_of_equal_length_and_bounded():
    lengths = [5, 3, 5, 5, 3, 9, 5]
    batches = list(equal_length_batches(lengths, 10))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) * lengths[batch[0]] <= 10
    assert [len(b) for b in batches] == [2, 2, 2, 1]
    # A prompt above the bound still runs, alone.
    assert list(equal_length_batches([50, 50], 10)) == [[0], [1]]


def test_lengths_are_filled_up_as_costs_least():
    """Of all ways to cut sorted lengths into passes none costs less."""
    assert filled([]) == [] and filled([7]) == [7]
    assert filled([3] * 100 + [9]) == [3] * 100 + [9]  # a pass costs less than 600 tokens
    assert filled([3, 9]) == [9, 9]
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randrange(1, 40) for _ in range(draw.randrange(1, 30))]
        own = sorted(set(lengths))[:7]
        lengths = [length for length in lengths if length in own]
        found = filled(lengths)
        assert all(to >= length for to, length in zip(found, lengths))
        costs = []
        for ends in itertools.product([False, True], repeat=len(own) - 1):
            last = [length for length, end in zip(own, [*ends, True]) if end]
            to = [min(end for end in last if end >= length) for length in lengths]
            costs.append(PASS * len(last) + sum(to))
        assert PASS * len(set(found)) + sum(found) == min(costs)


@pytest.fixture
def stage(tiny_model, tmp_path):
    """stage(kind): stages prompts and states run on the small task; the paths they wrote."""

    def run(kind, batch_tokens=40):
        made = tiny_model(kind)
        made.prompts, made.states = tmp_path / "towns.parquet", tmp_path / "towns.safetensors"
        settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": 6})
        task = tiny.write_task(tmp_path, "towns")
        run_stage(
            "prompts", model=made.description, task=task, settings=settings, output=made.prompts
        )
        made.inputs = {"model": made.description, "readout": made.readout, "prompts": made.prompts}
        run_stage("states", **made.inputs, batch_tokens=batch_tokens, output=made.states)
        return made

    return run


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neox-sequential", "gemma3_text"])
def test_file(stage, kind):
    made = stage(kind)
    rows = kept_rows(made.prompts, CAPTURED)
    assert len(rows) == 12 and {r["prompt_set"] for r in rows} == set(CAPTURED)
    parallel = kind == "gptj"
    sites = ["ffn_out", "resid_post"] if parallel else ["resid_mid", "ffn_out", "resid_post"]
    layers = range(tiny.layers_of(kind))
    names = {f"{site}.{layer:02d}" for site in sites for layer in layers}
    file = Tensors(made.states)
    assert set(file) == names | {"resid_pre.00"}
    found = {name: file[name] for name in file}
    assert all(t.shape == (12, 32) and t.dtype == torch.float32 for t in found.values())
    digest = file.metadata.pop("token_ids_sha256")
    assert digest == token_hash(rows) and len(digest) == 64
    file.metadata.pop("checksums")
    assert set(json.loads(file.metadata.pop("dtypes")).values()) == {"torch.float32"}
    # What the proof measured when the model was loaded.
    for name in ("stream", "readout", "runs"):
        assert 0 <= float(file.metadata.pop(f"proof_{name}")) < 1e-5
    assert file.metadata == provenance() | {
        "model": kind,
        "task": "towns",
        "dtype": "float32",
        "shards": "1",
        "engine": "single",
        "batch_tokens": "40",
        "offload": "False",
        "step_version": str(STAGES["states"].version),
    }
    # Row by row, the plain forward of the prompt that stands in that row of the table.
    for number, row in enumerate(rows):
        plain = plain_states(made.model, row["token_ids"], parallel)
        for name, tensor in found.items():
            assert (tensor[number] - plain[name]).abs().max() <= 1e-5 * plain[name].abs().max()


def test_prompts_of_a_set_share_their_beginning(stage):
    # One forward of the demonstration for each set: two, and two more where the row that is
    # itself the demonstration gets another one.
    made = stage("gpt2")
    rows = kept_rows(made.prompts, CAPTURED)
    groups = prompt_groups(rows)
    assert [ids for group in groups for ids in group] == [row["token_ids"] for row in rows]
    kinds = {(row["prompt_set"], row["demonstrations"]) for row in rows}
    assert len(groups) <= len(kinds) + 2
    largest = max(groups, key=len)
    assert len(largest) >= 4 and forward.shared_prefix(largest) > 15


def test_half_precision_is_stored_as_such(tiny_model, tmp_path):
    made = describe("qwen2", tiny_model("qwen2").folder, tmp_path / "model", dtype="bfloat16")
    assert main(made.arguments) == 0
    prompts, states = tmp_path / "verbs.parquet", tmp_path / "verbs.safetensors"
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": None})
    task = tiny.write_task(tmp_path, "verbs")
    run_stage("prompts", model=made.description, task=task, settings=settings, output=prompts)
    inputs = {"model": made.description, "readout": made.readout, "prompts": prompts}
    run_stage("states", **inputs, batch_tokens=64, output=states)
    file = Tensors(states)
    assert {file[name].dtype for name in file} == {torch.bfloat16}
    assert file.metadata["dtype"] == "bfloat16"


def lens_command(made, states=None, **changes):
    inputs = made.inputs | {"states": states or made.states, "first": 0, "last": 2}
    return command("lens", **inputs | {"output": made.states.with_name("lens.parquet")} | changes)


def test_states_of_other_prompts_are_refused(stage, refused, tmp_path):
    made = stage("gpt2")
    other = tmp_path / "other" / "towns.parquet"
    settings = json.dumps({"demonstrations": 1, "seed": 1, "max_prompts": 6})
    task = tiny.write_task(tmp_path, "towns")
    run_stage("prompts", model=made.description, task=task, settings=settings, output=other)
    line = refused(lens_command(made, prompts=other))
    assert "towns.safetensors belongs to other prompts; delete it and run again" in line
    assert not made.states.with_name("lens.parquet").exists()


def test_states_that_are_no_numbers_are_refused(stage, refused, tmp_path):
    # Every comparison with nan is false: its rank would be 0, a right answer.
    made = stage("llama")
    rows = kept_rows(made.prompts, CAPTURED)
    used = [set(row["token_ids"]) for row in rows]
    # A token that the proof's prompt, the first, does not hold.
    token = min(used[-1] - used[0])
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[token, 0] = torch.inf
    model.save_pretrained(tmp_path / "source")
    tiny.tokenizer().save_pretrained(tmp_path / "source")
    broken = describe("llama", tmp_path / "source", tmp_path / "broken")
    assert main(broken.arguments) == 0
    inputs = {"model": broken.description, "readout": broken.readout, "prompts": made.prompts}
    line = refused(command("states", **inputs, batch_tokens=64, output=tmp_path / "x"))
    assert "holds numbers that are infinite or none in float32" in line
    assert not (tmp_path / "x").exists()


def test_truncated_file(stage, refused, tmp_path):
    made = stage("gpt2")
    whole = made.states.read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:size])
        line = refused(lens_command(made, states=cut))
        assert "cut.safetensors is damaged" in line and "delete it and run again" in line


def test_flipped_bit_in_a_tensor(stage, refused, tmp_path):
    made = stage("gpt2")
    whole = bytearray(made.states.read_bytes())
    whole[len(whole) // 2] ^= 4  # of a tensor that stage lens reads
    (tmp_path / "flipped.safetensors").write_bytes(whole)
    line = refused(lens_command(made, states=tmp_path / "flipped.safetensors"))
    assert "flipped.safetensors is damaged (checksum of " in line


def test_flipped_bit_in_the_header(tmp_path):
    # Any bit: names, shapes, offsets and metadata are as precious as the numbers.
    path = tmp_path / "small.safetensors"
    tensors = {"norm.bias": torch.arange(6.0).view(2, 3), "norm.weight": torch.ones(3)}
    write_tensors(tensors, path, {"norm": "layer", "epsilon": repr(1e-5)})
    notes = Tensors(path).metadata
    whole = path.read_bytes()
    start = len(whole) - 9 * 4
    for position in range(start):
        for bit in (1, 4, 32):
            damaged = bytearray(whole)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            try:
                file = Tensors(path)
                read = {name: file[name] for name in file}
            except Problem as problem:
                assert "is damaged" in str(problem) and len(str(problem).splitlines()) == 1
                continue
            # What is read all the same is what was written (a changed space, say).
            assert file.metadata == notes, damaged[:start]
            assert read.keys() == tensors.keys()
            assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "states.safetensors"
    write_tensors({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(Exception):
        write_tensors({"a": torch.ones(2)}, path, {"note": Unprintable()})
    path.parent.joinpath("blocked").write_text("a file, not a folder")
    with pytest.raises(Problem, match="cannot write"):
        write_tensors({"a": torch.ones(2)}, tmp_path / "blocked" / "x.safetensors")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blocked", "states.safetensors"]


class Unprintable:
    def __str__(self):
        raise RuntimeError("stopped half way")


def test_weights_that_are_gone(stage, refused, tmp_path):
    made = stage("gpt2")
    copy = tmp_path / "moved" / "model.json"
    copy.parent.mkdir()
    shutil.copy(made.description, copy)
    inputs = made.inputs | {"model": copy, "batch_tokens": 64, "output": tmp_path / "x"}
    line = refused(command("states", **inputs))
    assert "the weights of 'gpt2' are gone from" in line and "run again" in line


def test_wrong_readout_stops_the_stage(stage, tiny_model, refused, tmp_path):
    made = stage("gpt2")
    other = tmp_path / "other.safetensors"
    file = Tensors(made.readout)
    tensors = {name: file[name] for name in file}
    tensors["head.weight"] = tensors["head.weight"].roll(1, 0)
    notes = {k: v for k, v in file.metadata.items() if k != "checksums"}
    write_tensors(tensors, other, notes)
    inputs = made.inputs | {"readout": other, "batch_tokens": 64, "output": tmp_path / "x"}
    line = refused(command("states", **inputs))
    assert "early decoding of the last layer differs from the model's logits" in line
    assert not (tmp_path / "x").exists()
