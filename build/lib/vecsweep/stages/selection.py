"""Stage `selection`: the setting that was best on dev, tried on test beside its controls.

Donor, source layer, start layer, mode and scale are chosen by the answer's mean reciprocal rank
on dev (stage `interventions`); everything here runs on arguments that had no part in the choice.
"""

from vecsweep import tables
from vecsweep.engine.plans import Plan, end_layer, label, run_plans
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.layout import STAGES
from vecsweep.methods import METHODS, Setting, plans_of, read_vectors
from vecsweep.tasks.rows import NOVEL, capped, in_domain, kept_rows


def run(args):
    """Write the outcomes on test of the chosen setting, all donors, controls and parts."""
    vectors, donors = read_vectors(args.vectors)
    search = [row for path in args.search for row in tables.read("interventions", path).to_pylist()]
    outcomes, notes = [], {"step_version": STAGES["selection"].version}
    if search:
        own = kept_rows(args.prompts, NOVEL)
        engine, readout, description = load_engine(args, own[0]["token_ids"])
        chosen = choose(search)
        setting = Setting.of(chosen, args, engine, own, vectors, donors)
        plans = plans_of(setting)
        for domain, rows in test_prompts(own, donors, args).items():
            found = run_plans(engine, readout, rows, plans, report=True) if rows else []
            label(found, description["model"], own[0]["task"], "test", domain, chosen=True)
            outcomes += found
            if args.settings["controls_over_layers"] and domain == "in" and rows:
                few = capped(rows, args.settings["dev_prompts"], args.settings["seed"])
                moved = at_other_layers(plans, chosen["start_layer"], len(engine.blocks), args)
                found = run_plans(engine, readout, few, moved, report=True)
                label(found, description["model"], own[0]["task"], "test", domain, chosen=False)
                outcomes += found
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)


def choose(search: list[dict]) -> dict:
    """The setting with the largest mean reciprocal rank of the answer; ties: the lowest layer."""
    names = ("start_layer", "mode", "scale", "donor", "source_layer")
    cells: dict[tuple, list] = {}
    for row in search:
        key = tuple(row[name] for name in names)
        cells.setdefault(key, []).append(1 / (1 + row["answer_rank_after"]))

    def merit(key):
        # The mean of the donors has no donor: it sorts before all of them.
        sortable = tuple(-1 if part is None else part for part in key)
        return sum(cells[key]) / len(cells[key]), -key[0], sortable

    return dict(zip(names, max(cells, key=merit)))


def test_prompts(own: list[dict], donors: list, args) -> dict[str, list[dict]]:
    """Prompts by domain: `in` (test half) and `out` (another group or task, nothing chosen there)."""
    count, seed = args.settings["test_prompts"], args.settings["seed"]
    outside = [row for row in own if row["out_of_domain"]]
    for path in args.elsewhere:
        outside += kept_rows(path, NOVEL)
    return {
        "in": capped(in_domain(own, donors, "test"), count, seed),
        "out": capped(outside, count, seed),
    }


def at_other_layers(plans: list[Plan], chosen: int, layers: int, args) -> list[Plan]:
    """The plans of the methods that are tried everywhere, at every start layer but the chosen."""
    return [
        Plan(start, p.end, p.mode, p.position, p.vectors, p.labels)
        for start in range(end_layer(args.settings, layers) + 1)
        for p in plans
        if start != chosen
        and (method := METHODS.get(p.labels[0]["control"]))
        and method.at_every_layer
    ]
