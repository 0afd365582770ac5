"""Stage `lens`: early decoding of stored states, from the readout alone (paper section 2)."""

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import torch

from vecsweep import tables
from vecsweep.engine.decoding import Decoded, decode
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.files import once, read_json
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of

TARGETS = ("argument", "answer")
DECODED_TOGETHER = 8192  # states, at most: memory does not grow with the prompts
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
    blocks = range(args.first, args.last + 1)
    parts = decoded_parts(description["model"], rows, states, blocks, parallel, readout, targets)
    notes = {f"states_{key}": states.metadata[key] for key in STATES_NOTES}
    notes["step_version"] = STAGES["lens"].version
    tables.write_parts("lens", parts, args.output, notes)


def decoded_parts(
    model: str, rows: list[dict], states, layers: range, parallel: bool, readout: Readout, targets
) -> Iterator[pa.Table]:
    """The table's rows by layer, site and prompt, decoded DECODED_TOGETHER states at a time."""
    count = 3 if parallel else 2  # sites of a layer
    cuts = [slice(i, i + DECODED_TOGETHER) for i in range(0, len(rows), DECODED_TOGETHER)]
    pieces = (
        ({"layer": layer, "site": site}, cut, state[cut].float())
        for layer in layers
        for site, state in sites(states, layer, parallel)
        for cut in cuts
    )
    # Many layers at a time: the LM head is read from memory once for all of them.
    together = DECODED_TOGETHER // (len(rows) * count) * count or 1
    while some := list(islice(pieces, together)):
        several = [torch.cat([tokens[cut] for _, cut, _ in some]) for tokens in targets]
        found = torch.cat([state for _, _, state in some])
        unit = len(rows) * count if together > 1 else None
        decoded = decode(readout, found, several, TOP_K, unit=unit)
        start = 0
        for labels, cut, state in some:
            columns = columns_of(decoded, slice(start, start + len(state)))
            yield _labelled(columns, model, rows[cut], labels)
            start += len(state)


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
