"""Stage `contenders`: methods of other papers, searched on dev and reported on test, in one job.

On the same prompts as stages `interventions` and `selection`, with which their results are paired. A
job of their own: what the config adds to them runs no o-vector again.
"""

from vecsweep import tables, tasks
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import label, run_plans
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.engine.sharded import gathered
from vecsweep.files import once
from vecsweep.layout import STAGES
from vecsweep.methods import METHODS, Donors, Material, shown
from vecsweep.methods.grid import best_settings, plan, state_layers, state_plans
from vecsweep.tasks.readers import Reader
from vecsweep.tasks.rows import NOVEL, all_answers, dev_prompts, kept_rows, test_prompts
from vecsweep.tasks.shots import draw, train_pool


def run(args):
    """Write a row for each dev prompt and setting, and for each test prompt at the best ones."""
    settings = args.settings
    used = Donors(args.vectors).used
    own = kept_rows(args.prompts, NOVEL)
    dev = dev_prompts(own, used, settings)
    tests = test_prompts(own, used, args.elsewhere, settings)
    outcomes, notes = [], {"step_version": STAGES["contenders"].version}
    if dev and tests:
        engine, readout, description = load_engine(args, dev[0]["token_ids"])
        material = Material(
            engine, args.prompts, own, Donors(args.vectors), [], settings, heads=args.heads
        )
        material.shown = prompts_shown(args) if settings["task_vectors"] else []
        names = [name for name, method in METHODS.items() if method.key and settings[method.key]]
        layers = state_layers(settings, description["layers"])
        vectors = [
            vector
            for name in names
            for layer in (layers if METHODS[name].by_source else layers[:1])
            for vector in METHODS[name].search(material, layer)
        ]
        plans = state_plans(vectors, settings, description["layers"])
        answers, parts = all_answers(own), Parts.of(args, engine)
        outcomes = run_plans(engine, readout, dev, plans, answers, True, parts)
        label(outcomes, description["model"], settings["task"], "dev")
        best = best_settings(outcomes)  # of the process that decodes: all take the same
        best = gathered(best)[0] if args.shards > 1 else best
        plans = []
        for name, at in best.items():
            chosen = [
                v for v in vectors if (v.method, v.source_layer) == (name, at["source_layer"])
            ]
            place = at["start_layer"], at["end_layer"], at["mode"], [at["scale"]]
            plans += plan(chosen, settings, *place)
        for domain, rows, answers in tests:
            found = run_plans(engine, readout, rows, plans, answers, True, parts)
            label(found, description["model"], settings["task"], "test", domain)
            outcomes += found
        if not engine.leader:
            return
        notes |= how_it_ran(args, engine)
    tables.write("interventions", outcomes, args.output, notes)


def prompts_shown(args) -> list[list[list[int]]]:
    """Token ids of the prompts that task vectors are made of, by their demonstrations."""
    reader = once(args, Reader.of, args.model, args.tokenizer)
    task = tasks.load(args.settings.get("file") or args.task, args.settings["task"])
    pool = train_pool(args.prompts, args.elsewhere)
    sets = draw(task, reader, pool, shown.SETS, shown.SHOTS, shown.QUERIES, args.settings["seed"])
    return [[row["token_ids"] for row in rows] for rows in sets]
