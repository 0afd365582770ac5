"""Stage `ovectors`: FFN updates that turned an argument into its answer (paper section 2)."""

import json
import random

import torch

from vecsweep import tables
from vecsweep.engine.readout import Readout
from vecsweep.files import once, read_table, write_tensors
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of

DECODED = 10  # promoted and demoted tokens to list
# Of the dev prompts, or the test prompts: a donor whose prompt shows the answer of more is none.
TAKEN = 0.25


def run(args):
    """Cut the donors' o-vectors from the stored states: no forward pass.

    Tensors: `vectors` [n, d_model], for each source layer some donors' and the mean of all its
    donors; `directions` [k, d_model], the singular directions of all these layers' donors'
    vectors, largest first. Without a donor all are empty, and later stages find nothing to inject.
    """
    prompts = kept_rows(args.prompts, CAPTURED)
    states = states_of(args.states, prompts)
    d_model = states["ffn_out.00"].shape[-1]
    rule = args.settings["donors"]
    able = eligible_donors(prompts, read_table(args.stages).to_pylist(), rule)
    eligible = [donor for donor in able if leaves_prompts(prompts[donor["row"]], prompts)]
    layers = source_layers(eligible, args.settings["source_layers"], args.settings["seed"])

    def cut(chosen):
        rows = [states[f"ffn_out.{d['layer']:02d}"][d["row"]].float() for d in chosen]
        return torch.stack(rows) if rows else torch.empty(0, d_model)

    kept, vectors = [], [torch.empty(0, d_model)]
    for layer, donors in layers.items():
        few = donors[: args.settings["per_layer"]]
        mean = {"prompt_id": None, "layer": layer, "argument": None, "answer": None}
        kept += [donor | {"flips": len(donors)} for donor in (*few, mean)]
        vectors += [cut(few), cut(donors).mean(0, keepdim=True)]
    notes = {
        "donors": json.dumps([(d["prompt_id"], d["layer"]) for d in kept]),
        "flips": json.dumps({k: [d["prompt_id"] for d in v] for k, v in layers.items()}),
        "rule": rule,
        "eligible": len(eligible),
        "step_version": STAGES["ovectors"].version,
    }
    # No more donors than dev and test prompts are told apart from.
    everything = cut([donor for donors in layers.values() for donor in donors])
    directions = torch.linalg.svd(everything, full_matrices=False).Vh
    cutout = torch.cat(vectors)
    rows = []
    if kept:
        readout = once(args, Readout.load, args.readout)
        rows = describe(kept, cutout, readout, states.metadata | {"rule": rule})
    write_tensors({"vectors": cutout, "directions": directions}, args.vectors, notes)
    tables.write("ovectors", rows, args.table, {"step_version": STAGES["ovectors"].version})
    less = len(able) - len(eligible)
    print(
        f"{states.metadata['task']}: {len(eligible)} train prompts can give an o-vector"
        + f"; {less} more show answers that many dev or test prompts have" * (less > 0)
    )


def eligible_donors(prompts: list[dict], stages: list[dict], rule: str) -> list[dict]:
    """Abstractive train prompts, answered correctly, whose answer one FFN put on top.

    Rule `flips`: the argument was on top just before (`sql/stages.sql` has the definition); rule
    `any`: whatever was. `layer` is that FFN's, `row` the row of the states.
    """
    found = {
        s["prompt_id"]: s["flip_layer"] if rule == "flips" else s["function_layer"]
        for s in stages
        if s["prompt_set"] == "abstractive"
        and (rule == "flips" or s["function_site"] in ("ffn", "both"))
    }
    return [
        {key: prompt[key] for key in ("prompt_id", "argument", "answer")}
        | {"layer": found[prompt["prompt_id"]], "row": row}
        for row, prompt in enumerate(prompts)
        if prompt["prompt_set"] == "abstractive"
        and prompt["split"] == "train"
        and found.get(prompt["prompt_id"]) is not None
    ]


def leaves_prompts(donor: dict, prompts: list[dict]) -> bool:
    """Whether most dev and test prompts have another answer than a donor's prompt shows.

    Those with such an answer are left out of what is chosen and reported (`tasks.rows.unseen`): of a
    relation with few answers that may be all of them. One of them never matters.
    """
    shown = set(donor["shown_tokens"])
    for split in ("dev", "test"):
        asked = [
            row
            for row in prompts
            if row["prompt_set"] == "abstractive"
            and row["split"] == split
            and not row["out_of_domain"]
        ]
        taken = sum(not shown.isdisjoint(row["answer_tokens"]) for row in asked)
        if taken > max(1, TAKEN * len(asked)):
            return False
    return True


def source_layers(eligible: list[dict], count: int, seed: int) -> dict[int, list[dict]]:
    """Layer -> its donors in a seeded order, of the `count` layers that have most of them."""
    layers: dict[int, list] = {}
    for donor in random.Random(f"{seed} donors").sample(eligible, len(eligible)):
        layers.setdefault(donor["layer"], []).append(donor)
    commonest = sorted(layers, key=lambda layer: (-len(layers[layer]), layer))
    return {layer: layers[layer] for layer in commonest[:count]}


def describe(donors: list[dict], vectors: torch.Tensor, readout: Readout, metadata) -> list[dict]:
    """Rows of table `ovectors`: norm, cosine to the mean of the layer, tokens promoted and demoted.

    Tokens are those with the largest and smallest logits of the vector read out as if it were a
    state, `E · ln_f(o)`.
    """
    logits = readout.logits(readout.normed(vectors))
    promoted = logits.topk(DECODED).indices
    demoted = logits.topk(DECODED, largest=False).indices
    means = {d["layer"]: vectors[i] for i, d in enumerate(donors) if d["prompt_id"] is None}
    return [
        {
            "model": metadata["model"],
            "task": metadata["task"],
            "donor": donor["prompt_id"],
            "layer": donor["layer"],
            "rule": metadata["rule"],
            "flips": donor["flips"],
            "argument": donor["argument"],
            "answer": donor["answer"],
            "norm": vectors[i].norm().item(),
            "cosine_to_mean": torch.cosine_similarity(vectors[i], means[donor["layer"]], 0).item(),
            "promoted": promoted[i].tolist(),
            "demoted": demoted[i].tolist(),
        }
        for i, donor in enumerate(donors)
    ]
