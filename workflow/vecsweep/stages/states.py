"""Stage `states`: hidden states of every layer at the last token, one forward a prompt."""

from collections.abc import Iterator

import torch

from vecsweep import Problem
from vecsweep.engine.forward import last_token_batches
from vecsweep.engine.load import Engine
from vecsweep.engine.running import how_it_ran, load_engine, progress_line
from vecsweep.files import write_rows
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, prompt_groups, token_hash

FIRST = "resid_pre.00"


def run(args):
    """Write the states of a task's prompts, batch by batch: no more of them is held in memory."""
    rows = kept_rows(args.prompts, CAPTURED)
    engine, _, description = load_engine(args, rows[0]["token_ids"])
    batches = states_of(engine, rows, description)
    metadata = {
        "model": description["model"],
        "task": rows[0]["task"],
        "dtype": description["dtype"],
        "token_ids_sha256": token_hash(rows),
        "step_version": STAGES["states"].version,
    }
    if engine.leader:
        write_rows(batches, len(rows), args.output, metadata | how_it_ran(args, engine))
    else:
        for _ in batches:
            continue


def states_of(
    engine: Engine, rows: list[dict], description: dict
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """(places of some rows, their `resid_pre.00`, `resid_mid.LL`, `ffn_out.LL`, `resid_post.LL`).

    Each is [places, d_model]. `resid_pre.00` is the stream before the first block; with it each
    layer's attention update follows from its neighbours. Parallel blocks have no resid_mid.
    """
    progress = progress_line(len(rows), engine.leader)
    for places, states in last_token_batches(engine, prompt_groups(rows), progress):
        for name, tensor in states.items():
            if not tensor.isfinite().all():  # nan would pass for the top token everywhere
                raise Problem(
                    f"{description['model']}: {name} holds numbers that are infinite or none in "
                    f"{description['dtype']}; give the model a wider dtype"
                )
        # What the other blocks read is the stream that the one before them left.
        kept = {k: v for k, v in states.items() if not k.startswith("resid_pre") or k == FIRST}
        yield places, kept
