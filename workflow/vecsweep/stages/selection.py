"""Stage `selection`: the setting that was best on dev, tried on test beside its controls.

Donor, source layer, start layer, mode and scale are chosen by the answer's mean reciprocal rank
on dev (stage `interventions`); everything here runs on arguments that had no part in the choice.
"""

import random
from pathlib import Path

from vecsweep import STEP_VERSIONS
from vecsweep.files import Tensors
from vecsweep.stages.interventions import (
    NOVEL,
    Plan,
    capped,
    end_layer,
    in_domain,
    label,
    model_arguments,
    plan,
    read_outcomes,
    read_vectors,
    run_plans,
    write_outcomes,
)
from vecsweep.stages.ovectors import MEAN
from vecsweep.stages.prompts import kept_rows
from vecsweep.stages.states import load_engine

REPEATS = 3  # random vectors and unrelated prompts: one alone may be a lucky one
# Controls that are also tried at every start layer, for one task of a model.
EVERYWHERE = ("o-vector", "random", "rival", "unrelated", "zero", "difference")
PARTS = (1, 10, 100)  # neurons or directions kept; the whole vector is the o-vector itself


def arguments(parser):
    model_arguments(parser)
    parser.add_argument("--vectors", type=Path, required=True, help="safetensors of ovectors")
    parser.add_argument("--rival", type=Path, nargs="*", default=[], help="another task's vectors")
    parser.add_argument("--search", type=Path, nargs="+", required=True, help="interventions")
    parser.add_argument(
        "--elsewhere", type=Path, nargs="*", default=[], help="other tasks' prompts"
    )
    parser.add_argument("--all-layers", action="store_true", help="controls at every start layer")


def run(args):
    """Write the outcomes on test of the chosen setting, all donors, controls and parts."""
    vectors, donors = read_vectors(args.vectors)
    search = read_outcomes(args.search)
    outcomes = []
    if search:
        chosen = choose(search)
        own = kept_rows(args.prompts, NOVEL)
        engine, readout, description = load_engine(args, own[0]["token_ids"])
        settings = args.settings | {"scales": [chosen["scale"]]}
        plans = chosen_plans(engine, own, vectors, donors, chosen, args)
        for domain, rows in test_prompts(own, donors, args).items():
            if rows:
                found = run_plans(engine, readout, rows, plans, report=True)
                if args.all_layers and domain == "in":
                    found += at_all_layers(engine, readout, rows, plans, chosen, settings)
                label(found, description["model"], own[0]["task"], "test", domain)
                outcomes += found
        if not engine.leader:
            return
    write_outcomes(outcomes, args, STEP_VERSIONS["selection"])


def choose(search: list[dict]) -> dict:
    """The setting with the largest mean reciprocal rank of the answer; ties: the lowest layer."""
    cells: dict[tuple, list] = {}
    for row in search:
        key = (row["start_layer"], row["mode"], row["scale"], row["donor"], row["source_layer"])
        cells.setdefault(key, []).append(1 / (1 + row["answer_rank_after"]))
    best = max(cells, key=lambda key: (sum(cells[key]) / len(cells[key]), -key[0], key))
    return dict(zip(("start_layer", "mode", "scale", "donor", "source_layer"), best))


def test_prompts(own: list[dict], donors, args) -> dict[str, list[dict]]:
    """Prompts by domain: `in` (test half) and `out` (another group or task, nothing chosen there)."""
    count, seed = args.settings["test_prompts"], args.settings["seed"]
    outside = [row for row in own if row["out_of_domain"]]
    for path in args.elsewhere:
        outside += kept_rows(path, NOVEL)
    return {
        "in": capped(in_domain(own, donors, "test"), count, seed),
        "out": capped(outside, count, seed),
    }


def at_all_layers(engine, readout, rows, plans, chosen: dict, settings: dict) -> list[dict]:
    """Outcomes of the chosen vector and its controls at every other start layer."""
    moved = [
        Plan(start, p.end, p.mode, p.position, p.vectors, p.labels)
        for start in range(end_layer(settings, len(engine.blocks)) + 1)
        for p in plans
        if p.labels[0]["control"] in EVERYWHERE and start != chosen["start_layer"]
    ]
    few = capped(rows, settings["dev_prompts"], settings["seed"])
    return run_plans(engine, readout, few, moved, report=True)


def chosen_plans(engine, own, vectors, donors, chosen: dict, args) -> list[Plan]:
    """The chosen vector, all other donors, the controls, and parts of the vector.

    o-vector: the chosen one; donor: the others at the same setting; random: of the same norm;
    rival: another task's mean; unrelated: the same FFN's output on random words; zero: that FFN
    dropped; difference: mean state about to say the answer minus mean state about to say the
    argument, at the source layer; difference_once: the same added once, at the start layer;
    neurons_K, directions_K: the chosen vector's K largest parts.
    """
    import torch

    start, mode = chosen["start_layer"], chosen["mode"]
    settings = args.settings | {"scales": [chosen["scale"]]}
    end = end_layer(settings, len(engine.blocks))
    index = donors.index((chosen["donor"], chosen["source_layer"]))
    vector, layer = vectors[index], chosen["source_layer"]

    def planned(control, some, names=None):
        names = names or [(i, layer) for i in range(len(some))]
        return plan(settings, mode, start, end, some, names, control)

    plans = [planned("o-vector", vector[None], [donors[index]])]
    others = [i for i in range(len(donors)) if i != index]
    if others:
        plans.append(planned("donor", vectors[others], [donors[i] for i in others]))
    generator = torch.Generator().manual_seed(args.settings["seed"])
    noise = torch.randn(REPEATS, len(vector), generator=generator)
    plans.append(planned("random", noise / noise.norm(dim=-1, keepdim=True) * vector.norm()))
    for path in args.rival:
        rival, rival_donors = read_vectors(path)
        if len(rival):
            plans.append(planned("rival", rival[-1:], rival_donors[-1:]))
    plans.append(planned("unrelated", unrelated(engine, own, layer, args.settings["seed"])))
    plans.append(Plan(start, end, "replace", settings["position"], torch.zeros(1, len(vector)),
                      [{"donor": 0, "source_layer": layer, "scale": 1.0, "control": "zero"}]))  # fmt: skip
    difference = difference_of_means(engine, args.prompts, donors, layer)
    plans.append(planned("difference", difference[None]))
    once = plan(settings | {"scales": [1.0]}, "add", start, start, difference[None], [(0, layer)])
    once.labels[0]["control"] = "difference_once"
    plans.append(once)
    donor = next(d for d in ([donors[index]] + donors) if d[0] != MEAN)
    plans += parts(engine, args, donor, vectors[donors.index(donor)], planned)
    return plans


def unrelated(engine, own: list[dict], layer: int, seed: int):
    """FFN outputs [REPEATS, d_model] of one layer on a few random words.

    The random words that a novel prompt starts with, before the argument, however long that is.
    """
    import torch

    from vecsweep.engine.forward import last_token_states

    rows = random.Random(f"{seed} unrelated").sample(own, min(REPEATS, len(own)))
    # The words stand there three times, the argument twice between them.
    counts = [(len(row["token_ids"]) - 2 * row["argument_length"]) // 3 for row in rows]
    prompts = [row["token_ids"][: max(1, count)] for row, count in zip(rows, counts)]
    states = [last_token_states(engine, [[p]])[f"ffn_out.{layer:02d}"][0] for p in prompts]
    return torch.stack(states).float()


def difference_of_means(engine, prompts_path, donors, layer: int):
    """Mean residual state that is about to say the answer minus that about to say the argument.

    Over the donors' abstractive and novel prompts, at the last token after block `layer`: the
    word2vec offset of the relations literature, [d_model].
    """
    from vecsweep.engine.forward import last_token_states

    ids = {donor for donor, _ in donors}
    means = []
    for prompt_set in ("abstractive", "novel"):
        rows = [r for r in kept_rows(prompts_path, (prompt_set,)) if r["prompt_id"] in ids]
        states = last_token_states(engine, [[r["token_ids"]] for r in rows])
        means.append(states[f"resid_post.{layer:02d}"].float().mean(0))
    return means[0] - means[1]


def parts(engine, args, donor: tuple, vector, planned) -> list[Plan]:
    """Plans with the K largest parts of a donor's o-vector, in two bases.

    Neurons: the vector is a sum over the FFN's inner neurons (activation times output weights);
    kept are those with the largest share of its squared length. Directions: the singular
    directions of all eligible o-vectors of the task, largest first.
    """
    import torch

    prompt_id, layer = donor
    row = next(r for r in kept_rows(args.prompts, ("abstractive",)) if r["prompt_id"] == prompt_id)
    directions = Tensors(args.vectors)["directions"]
    plans = []
    shares, constant = neuron_parts(engine, layer, row["token_ids"])
    if shares is not None:
        order = (shares @ vector).argsort(descending=True)
        for k in [*(k for k in PARTS if k < len(order)), len(order)]:
            kept = shares[order[:k]].sum(0) + constant
            name = f"neurons_{k if k < len(order) else 'all'}"
            plans.append(planned(name, kept[None], [donor]))
    for k in [*(k for k in PARTS if k < len(directions)), len(directions)]:
        basis = directions[:k]
        name = f"directions_{k if k < len(directions) else 'all'}"
        plans.append(planned(name, (vector @ basis.T @ basis)[None], [donor]))
    return plans


def neuron_parts(engine, layer: int, ids: list[int]):
    """(parts [neurons, d_model], constant [d_model]) that sum to the FFN update at the last token.

    A part is a neuron's activation times its output weights; a norm behind the FFN (Gemma) only
    scales each component, which is applied to the parts; the constant is the output bias.
    (None, None) for a family that names no output matrix.
    """
    import torch

    from vecsweep.engine.forward import first, hooks, last_token_states

    if not engine.family.down:
        return None, None
    seen = {}

    def inside(module, args, output):
        seen["activation"] = args[0].reshape(-1, args[0].shape[-1])[-1].float()
        seen["sum"] = first(output).reshape(-1, output.shape[-1])[-1].float()
        # GPT-2's Conv1D keeps its weight as [in, out], Linear as [out, in]. Copied, and before
        # any other hook: ZeRO-3 has gathered it for this forward and its own hook drops it.
        weight = module.weight.detach()
        seen["weight"] = (weight if hasattr(module, "nx") else weight.T).float().clone()

    down = engine.part(layer, "down")
    with hooks([down.register_forward_hook(inside, prepend=True)]):
        update = last_token_states(engine, [[ids]])[f"ffn_out.{layer:02d}"][0].float()
    with torch.inference_mode():
        shares = (seen["activation"][:, None] * seen["weight"]).cpu()
    if engine.shards > 1:  # each rank has its own neurons
        gathered = [None] * engine.shards
        torch.distributed.all_gather_object(gathered, shares)
        shares = torch.cat(gathered)
    if engine.family.ffn_scaled:
        return shares * (update / seen["sum"].cpu()), torch.zeros_like(update)
    return shares, update - shares.sum(0)
