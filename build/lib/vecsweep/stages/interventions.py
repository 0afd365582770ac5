"""Stage `interventions`: o-vectors put into novel contexts, over all start layers (paper section 2).

This is the search on the dev half of the arguments; stage `selection` reports on the other half.
"""

import torch

from vecsweep import tables
from vecsweep.engine.plans import Plan, end_layer, label, named, plan, run_plans
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.files import read_json
from vecsweep.layout import STAGES
from vecsweep.methods import read_vectors
from vecsweep.tasks.rows import NOVEL, capped, in_domain, kept_rows


def run(args):
    """Write a row for each dev prompt, vector, start layer, mode and scale."""
    vectors, donors = read_vectors(args.vectors)
    rows = dev_prompts(kept_rows(args.prompts, NOVEL), donors, args.settings)
    outcomes, notes = [], {"step_version": STAGES["interventions"].version}
    layers = read_json(args.model)["layers"]
    # Nothing to do may also be a block of start layers above the last edited layer.
    if len(vectors) and rows and args.first <= end_layer(args.settings, layers):
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        plans = search_plans(vectors, donors, args.settings, args.first, args.last, layers)
        outcomes = run_plans(engine, readout, rows, plans, report=True)
        label(outcomes, description["model"], rows[0]["task"], "dev")
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)


def dev_prompts(rows: list[dict], donors: list, settings: dict) -> list[dict]:
    """In-domain novel prompts of the dev half, without the donors' arguments, capped."""
    return capped(in_domain(rows, donors, "dev"), settings["dev_prompts"], settings["seed"])


def search_plans(
    vectors: torch.Tensor, donors: list, settings: dict, first: int, last: int, layers: int
) -> list[Plan]:
    """The plans of all start layers first..last: every vector, mode and scale."""
    end = end_layer(settings, layers)
    names = [named("o-vector", layer, donor=donor) for donor, layer in donors]
    return [
        plan(settings, mode, start, end, vectors, names)
        for start in range(first, min(last, end) + 1)
        for mode in settings["modes"]
    ]
