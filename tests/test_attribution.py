"""Stage attribution: contributions sum up to plain logits, and each is what its update adds."""

import json

import pytest
import torch

import tiny
from conftest import command, describe, main, run_stage
from test_models import final_norm
from test_states import plain_states
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.files import Tensors, read_table
from vecsweep.stages.attribution import attribute
from vecsweep.tasks.rows import CAPTURED, kept_rows


def attributed(model, folder, dtype="float32", prompts=5):
    """(rows of table prompts, of table attribution, the paths of the inputs) of a tiny model."""
    paths = {name: folder / f"{name}.parquet" for name in ("prompts", "attribution")}
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": prompts})
    task = tiny.write_task(folder, "towns")
    run_stage(
        "prompts", model=model.description, task=task, settings=settings, output=paths["prompts"]
    )
    inputs = {"model": model.description, "readout": model.readout, "prompts": paths["prompts"]}
    states = folder / "states.safetensors"
    run_stage("states", **inputs, batch_tokens=64, output=states)
    run_stage("attribution", **inputs, states=states, output=paths["attribution"])
    rows = kept_rows(paths["prompts"], CAPTURED)
    return rows, read_table(paths["attribution"]).to_pylist(), inputs | {"states": states}


@torch.inference_mode()
def plain_difference(model, row):
    """(logit(answer) - logit(argument), largest logit, answer) of a plain forward of a prompt."""
    logits = model(torch.tensor([row["token_ids"]]), use_cache=False).logits[0, -1].float()
    answer = max(row["answer_tokens"], key=lambda token: logits[token])
    difference = logits[answer] - logits[row["argument_token"]]
    return difference.item(), logits.abs().max().item(), answer


def test_contributions_sum_up_to_plain_logits(family, tmp_path):
    rows, found, _ = attributed(family, tmp_path)
    layers = tiny.layers_of(family.kind)
    sums = {}
    for row in found:
        key = row["prompt_set"], row["prompt_id"]
        sums.setdefault(key, {})[row["sublayer"], row["layer"]] = row["contribution"]
    parts = {(part, layer) for part in ("attention", "ffn") for layer in range(layers)}
    parts |= {("embedding", None), ("bias", None)}
    assert len(rows) == len(sums) == 10 and len(found) == len(rows) * len(parts)
    for row in rows:
        shares = sums[row["prompt_set"], row["prompt_id"]]
        expected, largest, _ = plain_difference(family.model, row)
        assert shares.keys() == parts
        assert sum(shares.values()) == pytest.approx(expected, abs=1e-4 * largest)
        # Without the biases it would not be so, where there are any.
        assert (shares["bias", None] != 0) == (family.kind in WITH_BIAS)


WITH_BIAS = ("gpt2", "gptj", "gpt_neox", "gpt_neox-sequential", "bloom", "opt")


@torch.inference_mode()
def test_each_contribution_is_what_its_update_adds(family, tmp_path):
    # By the model's own final norm: what it gives at the end, less what it gives without an update
    # when its scale is that of the end; plain updates, hooked at other places than the engine's.
    rows, found, inputs = attributed(family, tmp_path)
    model, parallel = family.model, "resid_mid.00" not in Tensors(inputs["states"])
    norm, head = final_norm(model), model.get_output_embeddings().weight
    weight = norm.weight + (1 if family.kind == "gemma3_text" else 0)
    for row in rows:
        states = plain_states(model, row["token_ids"], parallel)
        _, _, answer = plain_difference(model, row)
        towards = (head[answer] - head[row["argument_token"]]).double()
        end = states[f"resid_post.{tiny.layers_of(family.kind) - 1:02d}"].double()
        by_mean = hasattr(norm, "bias")
        epsilon = getattr(norm, "eps", None) or norm.variance_epsilon
        scale = end.var(unbiased=False) if by_mean else end.pow(2).mean()
        for share in found:
            if (share["prompt_set"], share["prompt_id"]) != (row["prompt_set"], row["prompt_id"]):
                continue
            if share["layer"] is None:
                continue
            number = f"{share['layer']:02d}"
            update = states[f"ffn_out.{number}"]
            if share["sublayer"] == "attention":
                update = states[f"resid_post.{number}"] - states[f"resid_pre.{number}"] - update
            update = update.double()
            update = update - update.mean() if by_mean else update
            added = (update / (scale + epsilon).sqrt() * weight) @ towards
            assert share["contribution"] == pytest.approx(added.item(), rel=1e-3, abs=1e-3)


def test_the_best_answer_at_the_end_is_followed():
    # Two parts, of which one says the second answer: no norm but the scale, a head of unit vectors.
    readout = Readout("rms", 0.0, torch.ones(4), None, torch.eye(4), None)
    start, update = torch.tensor([[2.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 3.0, 0.0]])
    states = {"resid_pre.00": start, "resid_mid.00": start, "resid_post.00": start + update}
    targets = [torch.tensor([[0]]), torch.tensor([[1, 2]])]
    shares, correct = attribute(states, readout, targets, 1)
    scale = (start + update).pow(2).mean().sqrt()
    assert shares["ffn", 0].item() == pytest.approx(3 / scale.item())
    assert shares["attention", 0].item() == 0 and correct.tolist() == [True]
    assert shares["embedding", None].item() == pytest.approx(-1 / scale.item())


def test_half_precision_sums_up_too(tiny_model, tmp_path):
    # To what early decoding says of the stored state: what rounding took is in the updates.
    for kind in ("qwen2", "gptj"):
        folder = tmp_path / kind
        made = describe(kind, tiny_model(kind).folder, folder / "model", dtype="bfloat16")
        assert main(made.arguments) == 0
        rows, found, inputs = attributed(made, folder)
        readout, states = Readout.load(made.readout), Tensors(inputs["states"])
        targets = target_tokens(rows)
        logits = readout.logits_at(
            readout.normed(states[f"resid_post.{tiny.layers_of(kind) - 1:02d}"]),
            torch.cat(targets, 1),
        )
        expected = logits[:, 1:].amax(1) - logits[:, 0]
        for number, row in enumerate(rows):
            mine = [
                share["contribution"]
                for share in found
                if all(share[key] == row[key] for key in ("prompt_set", "prompt_id"))
            ]
            assert sum(mine) == pytest.approx(expected[number].item(), abs=1e-4)


def test_states_of_other_prompts_are_refused(tiny_model, refused, tmp_path):
    (tmp_path / "other").mkdir()
    _, _, inputs = attributed(tiny_model("gpt2"), tmp_path)
    _, _, others = attributed(tiny_model("gpt2"), tmp_path / "other", prompts=4)
    inputs["states"] = others["states"]
    line = refused(command("attribution", **inputs, output=tmp_path / "x"))
    assert "belongs to other prompts; delete it and run again" in line
