"""Stage `states`: hidden states of every layer at the last token, one forward a prompt."""

import hashlib
import json
import sys
import time
from pathlib import Path

from vecsweep import STEP_VERSIONS, Problem
from vecsweep.files import read_json, write_tensors
from vecsweep.stages.prompts import kept_rows

# Prompts in novel contexts are only run with interventions.
PROMPT_SETS = ("abstractive", "extractive")


def arguments(parser):
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    parser.add_argument("--readout", type=Path, required=True, help="readout.safetensors")
    parser.add_argument("--prompts", type=Path, required=True, help="Parquet of stage prompts")
    engine_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="safetensors to write")


def engine_arguments(parser):
    """Arguments of every stage that runs a model."""
    parser.add_argument("--batch-tokens", type=int, required=True, help="tokens in one forward")
    parser.add_argument("--shards", type=int, default=1, help="processes that share the model")
    parser.add_argument("--engine", default="auto", help="auto, single, tensor or zero")
    parser.add_argument("--offload", action="store_true", help="zero: keep weights in host memory")
    parser.add_argument("--ranks", type=Path, help="folder of stage preshard to start from")


def load_engine(args, prompt: list[int]):
    """(engine, readout on its device, description); the engine is proven on a prompt's token ids.

    The readout is None on ranks that do not decode. Stages that run together load it once.
    """
    from vecsweep.engine import load, proof
    from vecsweep.engine.readout import Readout

    loaded = getattr(args, "loaded", {})
    how = args.batch_tokens, args.shards, args.engine, args.offload, args.ranks
    key = args.model, args.readout, *how
    if key not in loaded:
        description = read_json(args.model)
        engine = load.load(description, args.model, *how)
        readout = Readout.load(args.readout) if engine.leader else None
        proof.prove(engine, readout, prompt)
        loaded[key] = engine, readout and readout.to(engine.device), description
    return loaded[key]


def run(args):
    """Write the states of a task's prompts."""
    rows = kept_rows(args.prompts, PROMPT_SETS)
    engine, _, description = load_engine(args, rows[0]["token_ids"])
    states = states_of(engine, rows, description)
    metadata = {
        "model": description["model"],
        "task": rows[0]["task"],
        "dtype": description["dtype"],
        "shards": args.shards,
        "token_ids_sha256": token_hash(rows),
        "step_version": STEP_VERSIONS["states"],
    }
    if engine.leader:
        write_tensors(states, args.output, metadata)


def states_of(engine, rows: list[dict], description: dict) -> dict:
    """`resid_mid.LL`, `ffn_out.LL`, `resid_post.LL` of prompts, each [prompts, d_model].

    Parallel blocks have no resid_mid; they have `resid_pre.00` instead, from which each layer's
    attention update follows.
    """
    from vecsweep.engine.forward import last_token_states

    progress = progress_line(len(rows), engine.leader)
    states = last_token_states(engine, prompt_groups(rows), progress)
    for name, tensor in states.items():
        if not tensor.isfinite().all():  # nan would pass for the top token everywhere
            raise Problem(
                f"{description['model']}: {name} holds numbers that are infinite or none in "
                f"{description['dtype']}; give the model a wider dtype"
            )
    before = "resid_pre.00" if engine.parallel else None
    return {k: v for k, v in states.items() if not k.startswith("resid_pre") or k == before}


def prompt_groups(rows: list[dict]) -> list[list[list[int]]]:
    """Token ids of consecutive prompts with the same set and demonstrations: a shared beginning."""
    groups: dict[tuple, list] = {}
    order = []
    for row in rows:
        key = (row["prompt_set"], row["demonstrations"])
        if not order or order[-1] != key:
            order.append(key)
            groups[(len(order), *key)] = []
        groups[(len(order), *key)].append(row["token_ids"])
    return list(groups.values())


def token_hash(rows: list[dict]) -> str:
    """sha256 of the prompts' token ids, in order."""
    return hashlib.sha256(json.dumps([r["token_ids"] for r in rows]).encode()).hexdigest()


def progress_line(total: int, leader: bool = True):
    """A callback that prints prompts done, tokens per second and the time left, every 5 s."""
    start = time.monotonic()
    done = {"prompts": 0, "tokens": 0, "printed": start}

    def progress(prompts, tokens):
        done["prompts"] += prompts
        done["tokens"] += tokens
        now = time.monotonic()
        finished = done["prompts"] == total and prompts
        if not leader or (now - done["printed"] < 5 and not finished):
            return
        done["printed"] = now
        elapsed = max(now - start, 1e-9)
        left = elapsed * (total - done["prompts"]) / max(done["prompts"], 1)
        print(
            f"{done['prompts']} of {total} prompts, {done['tokens'] / elapsed:.0f} tokens/s, "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return progress
