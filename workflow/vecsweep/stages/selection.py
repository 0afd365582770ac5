"""Stage `selection`: every method at the setting that was best for it on dev, tried on test.

Everything here runs on arguments that had no part in the choice, and whose answers no vector was
made from.
"""

from vecsweep import tables
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import label, run_plans
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.layout import STAGES
from vecsweep.methods import Donors, Material, reported
from vecsweep.methods.grid import best_settings, plan
from vecsweep.tasks.rows import NOVEL, kept_rows, test_prompts


def run(args):
    """Write the outcomes on test of all methods, of other donors and of the o-vector's parts."""
    donors = Donors(args.vectors)
    search = [row for path in args.search for row in tables.read("interventions", path).to_pylist()]
    outcomes, notes = [], {"step_version": STAGES["selection"].version}
    if search:
        own = kept_rows(args.prompts, NOVEL)
        engine, readout, description = load_engine(args, own[0]["token_ids"])
        material = Material.of(args, engine, own, donors)
        plans, parts = [], Parts.of(args, engine)
        for name, best in best_settings(search).items():
            vectors = reported(material, name, best["source_layer"])
            place = best["start_layer"], best["end_layer"], best["mode"], [best["scale"]]
            plans += plan(vectors, args.settings, *place)
        for domain, rows, answers in test_prompts(own, donors.used, args.elsewhere, args.settings):
            found = run_plans(engine, readout, rows, plans, answers, True, parts)
            label(found, description["model"], own[0]["task"], "test", domain)
            outcomes += found
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)
