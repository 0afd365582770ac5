"""Weights rounded to 8 or 4 bits: the engine against a plain model rounded alike, and refusals."""

import copy
import sys

import pytest
import torch
from torch.nn.functional import kl_div
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

from conftest import describe, main
from test_config import edited, problem
from test_states import assert_equal_states
from vecsweep.engine import load, quantized
from vecsweep.engine.forward import last_token_states
from vecsweep.files import read_json
from vecsweep.methods.parts import neuron_parts
from vecsweep.stages import models

PROMPTS = [[7, 99, 300, 12, 45], [7, 99, 301, 8, 77], [7, 99, 3, 200]]
BLOCKS = {"bloom": "transformer.h"}
SETTINGS = {
    "int8": Int8WeightOnlyConfig(),
    "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
}


@pytest.mark.parametrize("kind, bits", [*((k, "int8") for k in ("llama", "bloom", "gemma3_text")), ("llama", "int4")])  # fmt: skip
def test_a_rounded_model_is_the_plain_one_rounded(kind, bits, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "GROUP", 16)  # 48 neurons
    whole = tiny_model(kind)
    stage = describe(kind, whole.folder, tmp_path, quantized=bits)
    assert main(stage.arguments) == 0
    described = read_json(stage.description)
    plain = copy.deepcopy(whole.model)
    quantize_(plain.get_submodule(BLOCKS.get(kind, "model.layers")), SETTINGS[bits])

    engine = load.load(described, stage.description, 64)
    states = last_token_states(engine, [PROMPTS])
    assert_equal_states(states, plain, PROMPTS, parallel=False)
    before = last_token_states(load.engine_of(whole.model, 64), [PROMPTS])
    last = max(states)
    assert (states[last] - before[last]).abs().max() > 1e-3 * before[last].abs().max()

    shares, constant = neuron_parts(engine, 1, PROMPTS[0])
    update = states["ffn_out.01"][0]
    torch.testing.assert_close(shares.sum(0) + constant, update, rtol=1e-4, atol=1e-5)

    # What it costs, once more from the plain models.
    assert len(set(quantized.QUESTIONS)) == 32
    tokenizer = models.tokenizer_of(kind, whole.folder)
    found = []
    for model in (whole.model, plain):
        rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in quantized.QUESTIONS]
        with torch.inference_mode():
            logits = torch.cat([model(ids).logits[:, -1] for ids in rows])
        found.append(logits.log_softmax(-1))
    same = (found[0].argmax(-1) == found[1].argmax(-1)).float().mean().item()
    divergence = kl_div(found[1], found[0], log_target=True, reduction="batchmean").item()
    assert described["quantized"] == bits
    assert described["same_top"] == pytest.approx(same)
    assert described["divergence"] == pytest.approx(divergence, rel=1e-3)


def test_what_cannot_be_rounded_is_refused(tiny_model, tmp_path, refused, monkeypatch):
    stage = describe("gpt2", tiny_model("gpt2").folder, tmp_path, quantized="int8")
    assert "no linear layers that int8 is made for" in refused(stage.arguments)
    assert not stage.description.exists()
    stage = describe("llama", tiny_model("llama").folder, tmp_path, quantized="int4")
    assert "no linear layers that int4 is made for" in refused(stage.arguments)  # 48 neurons
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    stage = describe("llama", tiny_model("llama").folder, tmp_path, quantized="int8")
    assert "needs torchao; pip install torchao" in refused(stage.arguments)


def test_rounded_weights_are_not_split():
    changed = edited(("models", "here", "quantized"), "int8")
    for key, value in (("shards", 2), ("offload", True)):
        copied = copy.deepcopy(changed)
        copied["models"]["here"][key] = value
        assert "quantized weights are not split or offloaded" in problem(copied)
