"""What every stage that runs a model shares: its engine, loaded once and proven, and progress."""

import sys
import time

from vecsweep.engine import batches, load, proof
from vecsweep.engine.readout import Readout
from vecsweep.files import read_json


def load_engine(args, prompt: list[int]):
    """(engine, readout on its device, description); the engine is proven on a prompt's token ids.

    The readout is None in processes that do not decode. Stages that run together load it once.
    """
    loaded = getattr(args, "loaded", {})
    how = args.batch_tokens, args.shards, args.engine, args.offload, args.slices
    key = args.model, args.readout, *how
    if key not in loaded:
        description = read_json(args.model)
        engine = load.load(description, args.model, *how)
        if engine.sharding == "single":
            batches.keep_memory()
        readout = Readout.load(args.readout) if engine.leader else None
        engine.proof = proof.prove(engine, readout, prompt)
        loaded[key] = engine, readout and readout.to(engine.device), description
    return loaded[key]


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


def how_it_ran(args, engine: load.Engine) -> dict:
    """What a result's notes say of the run of the model: execution settings, and the proof."""
    notes = {"shards": args.shards, "engine": engine.sharding, "batch_tokens": args.batch_tokens}
    notes |= {"offload": args.offload}
    return notes | {f"proof_{name}": value for name, value in vars(engine.proof).items()}
