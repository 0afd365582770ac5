"""Stage `ovectors`: FFN updates that turned an argument into its answer (paper section 2)."""

import json
import random
from pathlib import Path

from vecsweep import STEP_VERSIONS
from vecsweep.files import Tensors, read_table, write_table, write_tensors
from vecsweep.stages.prompts import kept_rows
from vecsweep.stages.states import PROMPT_SETS

MEAN = -1  # stands for a donor's prompt_id in the row of the mean of all donors
DECODED = 10  # promoted and demoted tokens to list


def arguments(parser):
    parser.add_argument("--readout", type=Path, required=True, help="readout.safetensors")
    parser.add_argument("--prompts", type=Path, required=True, help="Parquet of stage prompts")
    parser.add_argument("--states", type=Path, required=True, help="safetensors of stage states")
    parser.add_argument("--stages", type=Path, required=True, help="Parquet of stage stages")
    parser.add_argument("--donors", type=int, required=True, help="most donors to take")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="safetensors to write")
    parser.add_argument("--table", type=Path, required=True, help="Parquet to write")


def run(args):
    """Cut the donors' o-vectors from the stored states: no forward pass.

    Tensors: `vectors` [donors + 1, d_model], the mean of the donors last, and `directions`
    [k, d_model], the singular directions of all eligible vectors, largest first. Without an
    eligible prompt all are empty, and later stages find nothing to inject.
    """
    import torch

    prompts = kept_rows(args.prompts, PROMPT_SETS)
    stages = read_table(args.stages).to_pylist()
    states = Tensors(args.states)
    d_model = states["ffn_out.00"].shape[-1]
    eligible = eligible_donors(prompts, stages)
    donors = spread(eligible, args.donors, args.seed)

    def cut(chosen):
        rows = [states[f"ffn_out.{d['layer']:02d}"][d["row"]].float() for d in chosen]
        return torch.stack(rows) if rows else torch.empty(0, d_model)

    vectors, everything = cut(donors), cut(eligible)
    if donors:
        layers = sorted(d["layer"] for d in donors)
        middle = layers[(len(layers) - 1) // 2]
        donors.append({"prompt_id": MEAN, "layer": middle, "argument": None, "answer": None})
        vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
    directions = torch.linalg.svd(everything, full_matrices=False).Vh
    notes = {
        "donors": json.dumps([(d["prompt_id"], d["layer"]) for d in donors]),
        "eligible": len(eligible),
        "step_version": STEP_VERSIONS["ovectors"],
    }
    table = describe(donors, vectors, args.readout, states.metadata)
    write_tensors({"vectors": vectors, "directions": directions}, args.vectors, notes)
    write_table(table, args.table, {"step_version": STEP_VERSIONS["ovectors"]})
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
    chosen = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def describe(donors, vectors, readout_path, metadata):
    """Table `ovectors`: norm, cosine to the mean, and what each vector promotes and demotes.

    Tokens are those with the largest and smallest logits of the vector read out as if it were a
    state, `E · ln_f(o)`.
    """
    import pyarrow as pa
    import torch

    from vecsweep.engine.readout import Readout

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
    return pa.Table.from_pylist(rows, schema=schema(pa))


def schema(pa):
    """Columns of table `ovectors`; donor is a prompt_id, MEAN for the mean of all donors."""
    return pa.schema(
        {
            "model": pa.string(),
            "task": pa.string(),
            "donor": pa.int32(),
            "layer": pa.int16(),
            "argument": pa.string(),
            "answer": pa.string(),
            "norm": pa.float32(),
            "cosine_to_mean": pa.float32(),
            "promoted": pa.list_(pa.int32()),
            "demoted": pa.list_(pa.int32()),
        }
    )
