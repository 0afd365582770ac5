"""Stage `ovectors`: FFN updates that turned an argument into its answer (paper section 2)."""

import json
import random

import torch

from vecsweep import tables
from vecsweep.engine.readout import Readout
from vecsweep.files import Tensors, read_table, write_tensors
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows

DECODED = 10  # promoted and demoted tokens to list


def run(args):
    """Cut the donors' o-vectors from the stored states: no forward pass.

    Tensors: `vectors` [donors + 1, d_model], the mean of the donors last, and `directions`
    [k, d_model], the singular directions of all eligible vectors, largest first. Without an
    eligible prompt all are empty, and later stages find nothing to inject.
    """
    prompts = kept_rows(args.prompts, CAPTURED)
    states = Tensors(args.states)
    d_model = states["ffn_out.00"].shape[-1]
    eligible = eligible_donors(prompts, read_table(args.stages).to_pylist())
    donors = spread(eligible, args.settings["donors"], args.settings["seed"])

    def cut(chosen):
        rows = [states[f"ffn_out.{d['layer']:02d}"][d["row"]].float() for d in chosen]
        return torch.stack(rows) if rows else torch.empty(0, d_model)

    vectors, everything = cut(donors), cut(eligible)
    if donors:
        layers = sorted(donor["layer"] for donor in donors)
        middle = layers[(len(layers) - 1) // 2]
        donors.append({"prompt_id": None, "layer": middle, "argument": None, "answer": None})
        vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
    notes = {
        "donors": json.dumps([(d["prompt_id"], d["layer"]) for d in donors]),
        "eligible": len(eligible),
        "step_version": STAGES["ovectors"].version,
    }
    directions = torch.linalg.svd(everything, full_matrices=False).Vh
    rows = describe(donors, vectors, args.readout, states.metadata)
    write_tensors({"vectors": vectors, "directions": directions}, args.vectors, notes)
    tables.write("ovectors", rows, args.table, {"step_version": STAGES["ovectors"].version})
    print(f"{states.metadata['task']}: {len(eligible)} prompts can give an o-vector")


def eligible_donors(prompts: list[dict], stages: list[dict]) -> list[dict]:
    """Abstractive prompts answered correctly whose answer was put on top by one FFN.

    Out-of-domain groups of a task give no donors. `layer` is the function layer, `row` the row
    of the states.
    """
    found = {
        s["prompt_id"]: s["function_layer"]
        for s in stages
        if s["prompt_set"] == "abstractive" and s["function_site"] in ("ffn", "both")
    }
    return [
        {key: prompt[key] for key in ("prompt_id", "argument", "answer")}
        | {"layer": found[prompt["prompt_id"]], "row": row}
        for row, prompt in enumerate(prompts)
        if prompt["prompt_set"] == "abstractive"
        and prompt["prompt_id"] in found
        and not prompt["out_of_domain"]
    ]


def spread(eligible: list[dict], count: int, seed: int) -> list[dict]:
    """At most `count` donors, in turn from each source layer, the commonest layer first."""
    layers: dict[int, list] = {}
    for donor in random.Random(f"{seed} donors").sample(eligible, len(eligible)):
        layers.setdefault(donor["layer"], []).append(donor)
    queues = sorted(layers.values(), key=lambda queue: (-len(queue), queue[0]["layer"]))
    chosen: list[dict] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def describe(donors: list[dict], vectors: torch.Tensor, readout_path, metadata) -> list[dict]:
    """Rows of table `ovectors`: norm, cosine to the mean, and what each vector promotes and demotes.

    Tokens are those with the largest and smallest logits of the vector read out as if it were a
    state, `E · ln_f(o)`.
    """
    rows = []
    if donors:
        readout = Readout.load(readout_path)
        logits = readout.logits(readout.normed(vectors))
        cosine = torch.cosine_similarity(vectors, vectors[-1:])
        promoted = logits.topk(DECODED).indices
        demoted = logits.topk(DECODED, largest=False).indices
        for i, donor in enumerate(donors):
            rows.append(
                {
                    "model": metadata["model"],
                    "task": metadata["task"],
                    "donor": donor["prompt_id"],
                    "layer": donor["layer"],
                    "argument": donor["argument"],
                    "answer": donor["answer"],
                    "norm": vectors[i].norm().item(),
                    "cosine_to_mean": cosine[i].item(),
                    "promoted": promoted[i].tolist(),
                    "demoted": demoted[i].tolist(),
                }
            )
    return rows
