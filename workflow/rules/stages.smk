# A rule for each row of the table of stages (vecsweep/layout.py), one job for each of its cells.


def cell_of(wildcards):
    return Cell(*(getattr(wildcards, part, "") for part in Cell._fields))


def said(stage, model, task="", layers=""):
    """A job's message."""
    return f"{model}: {stage.name}" + f" of {task}" * bool(task) + f" {layers}" * bool(layers)


# What the hub has is fetched where Snakemake runs: compute nodes often have no network, and all that
# the stage does beside it takes seconds.
HUB = [model for model, settings in config["models"].items() if settings["source"] == "hub"]


def variants(stage):
    """(name of a rule, whether it runs here, constraint on its model) of the rules of a stage."""
    if stage.name != "models" or not HUB:
        return [(stage.name, False, alone(stage))]
    others = one_of(model for model in config["models"] if model not in HUB)
    return [("models", False, f"(?:{others})"), ("models_hub", True, f"(?:{one_of(HUB)})")]


for stage, name, local, constraint in [(s, *variant) for s in ROWS for variant in variants(s)]:
    place = os.path.join(stage.name, *(f"{{{part}}}" for part in stage.parts))
    words = [f"{{wildcards.{part}}}" for part in stage.parts]

    rule:
        name:
            name
        input:
            lambda wildcards, stage=stage: reads(stage, [cell_of(wildcards)]),
        output:
            **written(stage),
        log:
            f"logs/{place}.log",
        benchmark:
            f"results/benchmarks/{place}.tsv"
        wildcard_constraints:
            model=constraint,
        priority: PRIORITIES[stage.name]
        localrule: local
        conda:
            f"../../envs/{stage.environment}.yaml"
        threads: lambda wildcards, stage=stage: threads(stage, wildcards.model)
        resources:
            **REQUESTS.of(stage),
        params:
            command=lambda wildcards, stage=stage: command(stage, [cell_of(wildcards)]),
        message:
            said(stage, *words)
        shell:
            f"{VECSWEEP} {{params.command}} > {{log}} 2>&1"


NAMES = set()


def named(rule):
    """A rule's name, with a number behind it where another one has it: past-tense and past_tense."""
    found = next(
        name
        for name in itertools.chain([rule], (f"{rule}_{i}" for i in itertools.count(2)))
        if name not in NAMES
    )
    NAMES.add(found)
    return found


FIRST = 1 + max(PRIORITIES.values())
# A job takes several tasks: a rule for each group of them.
for model, by_stage in GROUPS.items():
    for stage in ROWS:
        for members in by_stage.get(stage.name, []):
            for layers in SWEEP.blocks(model) if "layers" in stage.parts else [""]:
                cells = [Cell(model, task, layers) for task in members]
                parts = [part for part in (stage.name, *cells[0]) if part]
                place = os.path.join(*parts)

                rule:
                    name:
                        named("_".join(parts).replace("-", "_"))
                    input:
                        reads(stage, cells),
                    output:
                        [kept(stage, path) for c in cells for path in made(stage, c).values()],
                    log:
                        f"logs/{place}.log",
                    benchmark:
                        f"results/benchmarks/{place}.tsv"
                    # One alone goes ahead of all, for a first look.
                    priority: FIRST if len(members) == 1 else PRIORITIES[stage.name]
                    conda:
                        f"../../envs/{stage.environment}.yaml"
                    threads: threads(stage, model)
                    resources:
                        **REQUESTS.of(stage, model, len(members)),
                    params:
                        command=command(stage, cells),
                    message:
                        said(stage, model, ", ".join(members), layers)
                    shell:
                        f"{VECSWEEP} {{params.command}} > {{log}} 2>&1"
