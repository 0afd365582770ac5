"""Stage `lens`: early decoding of stored states, from the readout alone (paper section 2)."""

import pyarrow as pa
import torch

from vecsweep import tables
from vecsweep.engine.decoding import Decoded, decode
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.files import once, read_json
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of

TARGETS = ("argument", "answer")
DECODED_TOGETHER = 8192  # states, at most: their memory does not grow with the prompts
TOP_K = 10  # top tokens that are stored; `lens.top_k` of them are shown
# How the states came about: the tables' provenance reaches back to the run of the model.
STATES_NOTES = (
    *("dtype", "host", "token_ids_sha256", "shards", "engine", "batch_tokens", "offload"),
    *("proof_stream", "proof_readout"),
)


def run(args):
    """Write a row for each prompt, layer and site: both targets and the top tokens.

    Columns: rank, reciprocal rank and probability of `argument` and `answer`, and lists of the
    top token ids with their probabilities; the summary unfolds them into `lens` and `top_tokens`.
    """
    description = read_json(args.model)
    rows = kept_rows(args.prompts, CAPTURED)
    states = states_of(args.states, rows)
    readout = once(args, Readout.load, args.readout)
    targets = target_tokens(rows)
    parallel = description["parallel_blocks"]
    unit = len(rows) * (3 if parallel else 2)  # states of a layer
    each = max(1, DECODED_TOGETHER // unit)
    blocks = []
    for first in range(args.first, args.last + 1, each):
        some = [
            ({"layer": layer, "site": site}, state.float())
            for layer in range(first, min(first + each, args.last + 1))
            for site, state in sites(states, layer, parallel)
        ]
        several = [tokens.repeat(len(some), 1) for tokens in targets]
        # Many layers at a time: the LM head is read from memory once for all of them.
        decoded = decode(readout, torch.cat([x for _, x in some]), several, TOP_K, unit=unit)
        for i, (labels, _) in enumerate(some):
            columns = columns_of(decoded, slice(i * len(rows), (i + 1) * len(rows)))
            blocks.append(_labelled(columns, description["model"], rows, labels))
    notes = {f"states_{key}": states.metadata[key] for key in STATES_NOTES}
    notes["step_version"] = STAGES["lens"].version
    tables.write("lens", pa.concat_tables(blocks), args.output, notes)


def sites(states, layer: int, parallel: bool):
    """(site, states [prompts, d_model]) to decode at a layer.

    Sequential blocks: resid_mid and resid_post. Parallel blocks have no mid-block state; each
    update is added to the block's input alone: attention_alone, ffn_alone, and resid_post.
    """
    post = states[f"resid_post.{layer:02d}"]
    if parallel:
        before = states["resid_pre.00"] if layer == 0 else states[f"resid_post.{layer - 1:02d}"]
        with_ffn = before + states[f"ffn_out.{layer:02d}"]
        yield "attention_alone", before.float() + (post.float() - with_ffn.float())
        yield "ffn_alone", with_ffn
    else:
        yield "resid_mid", states[f"resid_mid.{layer:02d}"]
    yield "resid_post", post


def columns_of(decoded: Decoded, rows: slice) -> dict:
    """The table's columns for some of the states that were decoded."""
    columns: dict = {
        "top_token": list(decoded.top_token[rows].int().numpy()),
        "top_probability": list(decoded.top_probability[rows].numpy()),
    }
    for k, target in enumerate(TARGETS):
        columns[f"{target}_token"] = decoded.token[rows, k].int().numpy()
        columns[f"{target}_rank"] = decoded.rank[rows, k].int().numpy()
        columns[f"{target}_probability"] = decoded.probability[rows, k].numpy()
    return columns


def _labelled(columns, model, rows, labels):
    count = len(rows)
    front = {
        "model": pa.array([model] * count),
        "task": pa.array([row["task"] for row in rows]),
        "prompt_set": pa.array([row["prompt_set"] for row in rows]),
        "prompt_id": pa.array([row["prompt_id"] for row in rows], pa.int32()),
        "layer": pa.array([labels["layer"]] * count, pa.int16()),
        "site": pa.array([labels["site"]] * count),
    }
    return pa.table(front | {name: pa.array(column) for name, column in columns.items()})
