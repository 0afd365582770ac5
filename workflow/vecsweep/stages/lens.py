"""Stage `lens`: early decoding of stored states, from the readout alone (paper section 2)."""

from pathlib import Path

from vecsweep import STEP_VERSIONS, Problem
from vecsweep.files import Tensors, read_json, write_table
from vecsweep.stages.prompts import kept_rows
from vecsweep.stages.states import PROMPT_SETS, token_hash

TARGETS = ("argument", "answer")


def arguments(parser):
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    parser.add_argument("--readout", type=Path, required=True, help="readout.safetensors")
    parser.add_argument("--prompts", type=Path, required=True, help="Parquet of stage prompts")
    parser.add_argument("--states", type=Path, required=True, help="safetensors of stage states")
    parser.add_argument("--first", type=int, required=True, help="first layer, from 0")
    parser.add_argument("--last", type=int, required=True, help="last layer, inclusive")
    parser.add_argument("--top-k", type=int, required=True, help="top tokens to keep")
    parser.add_argument("--output", type=Path, required=True, help="Parquet to write")


def run(args):
    """Write a row for each prompt, layer and site: both targets and the top tokens.

    Columns: rank, reciprocal rank and probability of `argument` and `answer`, and lists of the
    top token ids with their probabilities; the summary unfolds them into `lens` and `top_tokens`.
    """
    import pyarrow as pa

    from vecsweep.engine.readout import Readout

    description = read_json(args.model)
    rows = kept_rows(args.prompts, PROMPT_SETS)
    states = Tensors(args.states)
    if states.metadata["token_ids_sha256"] != token_hash(rows):
        raise Problem(f"{args.states} belongs to other prompts; delete it and run again")
    readout = Readout.load(args.readout)
    targets = target_tokens(rows)
    tables = []
    for layer in range(args.first, args.last + 1):
        for site, tensor in sites(states, layer, description["parallel_blocks"]):
            table = decode_site(readout, tensor, targets, args.top_k)
            labels = {"layer": layer, "site": site}
            tables.append(_labelled(pa, table, description["model"], rows, labels))
    table = pa.concat_tables(tables)
    # The tables' provenance reaches back to the run of the model.
    kept = ("dtype", "shards", "host", "token_ids_sha256")
    notes = {f"states_{key}": states.metadata[key] for key in kept}
    write_table(table, args.output, notes | {"step_version": STEP_VERSIONS["lens"]})


def target_tokens(rows: list[dict]) -> list:
    """Token ids of the targets: argument [prompts, 1], answer [prompts, k] padded with -1."""
    import torch

    width = max(len(row["answer_tokens"]) for row in rows)
    answers = [row["answer_tokens"] + [-1] * (width - len(row["answer_tokens"])) for row in rows]
    return [torch.tensor([[row["argument_token"]] for row in rows]), torch.tensor(answers)]


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


def decode_site(readout, tensor, targets, top_k: int) -> dict:
    """Columns (numpy) of early decoding for states [prompts, d_model]."""
    import torch

    from vecsweep.engine.readout import decode

    with torch.inference_mode():
        decoded = decode(readout, tensor, targets, top_k)
    columns = {
        "top_token": list(decoded.top_token.int().numpy()),
        "top_probability": list(decoded.top_probability.numpy()),
    }
    for k, target in enumerate(TARGETS):
        columns[f"{target}_token"] = decoded.token[:, k].int().numpy()
        columns[f"{target}_rank"] = decoded.rank[:, k].int().numpy()
        columns[f"{target}_probability"] = decoded.probability[:, k].numpy()
    return columns


def _labelled(pa, columns, model, rows, labels):
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
