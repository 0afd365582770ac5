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
from vecsweep.tasks.rows import NOVEL, all_answers, capped, in_domain, kept_rows, unseen


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
        for domain, rows, answers in test_prompts(own, donors, args):
            found = run_plans(engine, readout, rows, plans, answers, True, parts)
            label(found, description["model"], own[0]["task"], "test", domain)
            outcomes += found
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)


def test_prompts(own: list[dict], donors: Donors, args) -> list[tuple]:
    """(domain, prompts, all answers of their task): `in`, and `out`: another group or task."""
    count, seed = args.settings["test_prompts"], args.settings["seed"]
    fair = unseen(own, own, donors.used)
    found = [
        ("in", in_domain(fair, "test"), own),
        ("out", [row for row in fair if row["out_of_domain"]], own),
    ]
    for path in args.elsewhere:
        elsewhere = kept_rows(path, NOVEL)
        found.append(("out", unseen(elsewhere, own, donors.used), elsewhere))
    return [
        (domain, capped(rows, count, seed), all_answers(task))
        for domain, rows, task in found
        if rows
    ]
