"""Stage `attribution`: what each sublayer adds to the answer's logit over the argument's.

Direct logit attribution: the final state is the sum of the embedding and all updates, and with the
final norm's scale frozen where it ends the logits are linear in them (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework/index.html). Direct only: what an update does by way
of later layers counts as theirs.
"""

import pyarrow as pa
import torch

from vecsweep import tables
from vecsweep.engine.decoding import decode
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.files import once, read_json
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of


def run(args):
    """Write table `attribution`: a row for each prompt, layer and sublayer, in logits."""
    description = read_json(args.model)
    rows = kept_rows(args.prompts, CAPTURED)
    states = states_of(args.states, rows)
    readout = once(args, Readout.load, args.readout)
    shares, correct = attribute(states, readout, target_tokens(rows), description["layers"])
    blocks = [
        _labelled(share, correct, rows, description["model"], *key) for key, share in shares.items()
    ]
    found = pa.concat_tables(blocks)
    tables.write("attribution", found, args.output, {"step_version": STAGES["attribution"].version})


def parts(states, layers: int):
    """((sublayer, layer), update [prompts, d_model] in float32) of all that the final state is of.

    The embedding, of layer None, is the stream before the first block. Updates are differences of
    stored states, so that they sum up to the final one in any dtype. Parallel blocks have no state
    between attention and FFN: there attention's is what the FFN's leaves.
    """
    before = states["resid_pre.00"].float()
    yield ("embedding", None), before
    for layer in range(layers):
        after = states[f"resid_post.{layer:02d}"].float()
        if f"resid_mid.{layer:02d}" in states:
            middle = states[f"resid_mid.{layer:02d}"].float()
        else:
            middle = after - states[f"ffn_out.{layer:02d}"].float()
        yield ("attention", layer), middle - before
        yield ("ffn", layer), after - middle
        before = after


def attribute(states, readout: Readout, targets: list, layers: int):
    """({(sublayer, layer): contributions [prompts] in logits}, whether each prompt is correct).

    `targets` are the tokens of argument [prompts, 1] and answers [prompts, k]; of several answers
    the one that is best at the end is followed. All contributions of a prompt, with that of the
    biases (sublayer `bias`), sum up to logit(answer) - logit(argument) of the final state.
    """
    final = states[f"resid_post.{layers - 1:02d}"]
    with torch.inference_mode():
        end = decode(readout, final, targets, 1)
        argument, answer = end.token.unbind(-1)
        directions, constants = readout.difference(final, answer, argument)
        shares = {key: (update * directions).sum(-1) for key, update in parts(states, layers)}
    shares["bias", None] = constants
    return shares, end.rank[:, 1] == 0


def _labelled(share, correct, rows, model, sublayer, layer):
    count = len(rows)
    return pa.table(
        {
            "model": pa.array([model] * count),
            "task": pa.array([row["task"] for row in rows]),
            "prompt_set": pa.array([row["prompt_set"] for row in rows]),
            "prompt_id": pa.array([row["prompt_id"] for row in rows], pa.int32()),
            "layer": pa.array([layer] * count, pa.int16()),
            "sublayer": pa.array([sublayer] * count),
            "contribution": pa.array(share.numpy()),
            "correct": pa.array(correct.numpy()),
        }
    )
