"""Parts of an o-vector: its largest neurons, its largest directions."""

import torch

from vecsweep.engine.families import output_weight
from vecsweep.engine.forward import first, hooks, last_token_states
from vecsweep.engine.load import Engine
from vecsweep.engine.sharded import gathered
from vecsweep.methods.setting import Material, Vector
from vecsweep.tasks.rows import kept_rows

PARTS = (1, 10, 100)  # neurons or directions kept; the whole vector is the o-vector itself


def largest(material: Material, layer: int, donor: int) -> list[Vector]:
    """The K largest parts of a donor's o-vector, in two bases.

    Neurons: the vector is a sum over the FFN's inner neurons (activation times output weights);
    kept are those with the largest share of its squared length. Directions: the singular
    directions of all donors' o-vectors, largest first.
    """
    vector = dict(material.donors.of(layer))[donor]
    rows = kept_rows(material.prompts, ("abstractive",))
    row = next(r for r in rows if r["prompt_id"] == donor)
    found = []
    shares, constant = neuron_parts(material.engine, layer, row["token_ids"])
    if shares is not None:
        order = (shares @ vector).argsort(descending=True)
        found += [
            (f"neurons_{word}", shares[order[:k]].sum(0) + constant)
            for k, word in counts(len(order))
        ]
    for k, word in counts(len(material.donors.directions)):
        basis = material.donors.directions[:k]
        found.append((f"directions_{word}", vector @ basis.T @ basis))
    return [Vector(kept, method, layer, donor) for method, kept in found]


def counts(size: int) -> list[tuple[int, int | str]]:
    """(parts to keep, how they are called) of `size` parts."""
    return [*((k, k) for k in PARTS if k < size), (size, "all")]


def neuron_parts(engine: Engine, layer: int, ids: list[int]):
    """(parts [neurons, d_model], constant [d_model]) that sum to the FFN update at the last token.

    A part is a neuron's activation times its output weights; a norm behind the FFN (Gemma) only
    scales each component, as a block may scale all (Granite), which is applied to the parts; the
    constant is the output bias.
    (None, None) for a family that names no output matrix.
    """
    if not engine.family.down:
        return None, None
    seen = {}

    def inside(module, args, output):
        seen["activation"] = args[0].reshape(-1, args[0].shape[-1])[-1].float()
        seen["sum"] = first(output).reshape(-1, output.shape[-1])[-1].float()
        # Copied, and before any other hook: ZeRO-3 has gathered it for this forward and its own
        # hook drops it.
        seen["weight"] = output_weight(module).float().clone()

    down = engine.part(layer, "down")
    with hooks([down.register_forward_hook(inside, prepend=True)]):
        update = last_token_states(engine, [[ids]])[f"ffn_out.{layer:02d}"][0].float()
    with torch.inference_mode():
        shares = (seen["activation"][:, None] * seen["weight"]).cpu()
        shares = shares * (1.0 if engine.family.ffn_scaled else engine.update_scale)
    if engine.head_shards > 1:  # each process has its own neurons
        shares = torch.cat(gathered(shares))
    if engine.family.ffn_scaled:
        return shares * (update / seen["sum"].cpu()), torch.zeros_like(update)
    return shares, update - shares.sum(0)
