"""Stage `interventions`: vectors put into novel contexts, over the whole grid (paper section 2).

This is the search on dev arguments, the same for every method; stage `selection` reports on test.
"""

from vecsweep import tables
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import label, run_plans
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.files import read_json
from vecsweep.layout import STAGES
from vecsweep.methods import Donors, Material, candidates
from vecsweep.methods.grid import search_plans, start_layers
from vecsweep.tasks.rows import NOVEL, all_answers, dev_prompts, kept_rows


def run(args):
    """Write a row for each dev prompt and each method's vector at each setting."""
    donors = Donors(args.vectors)
    own = kept_rows(args.prompts, NOVEL)
    rows = dev_prompts(own, donors.used, args.settings)
    outcomes, notes = [], {"step_version": STAGES["interventions"].version}
    starts = start_layers(args.settings, read_json(args.model)["layers"])
    # Nothing to do may also be a block without a start layer.
    if donors.names and rows and any(args.first <= start <= args.last for start in starts):
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        vectors = candidates(Material.of(args, engine, own, donors))
        layers, parts = description["layers"], Parts.of(args, engine)
        plans = search_plans(vectors, args.settings, args.first, args.last, layers)
        outcomes = run_plans(engine, readout, rows, plans, all_answers(own), True, parts)
        label(outcomes, description["model"], rows[0]["task"], "dev")
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)
