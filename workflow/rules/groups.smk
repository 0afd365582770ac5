from types import SimpleNamespace

from snakemake.utils import format as filled

# A model with tasks_per_job takes several tasks for each time that it is loaded: a rule for each
# group of them, made of what the stage's own rule says for each task.


def of_task(stage, **wildcards):
    """The inputs, the output and the command of a stage's rule for one task."""
    own, wildcards = getattr(rules, stage), SimpleNamespace(**wildcards)

    def made(items):
        return {
            name: (value(wildcards) if callable(value) else expand(value, **vars(wildcards)))
            for name, value in items
        }

    inputs, (output,) = made(own.input.items()), expand(own.output, **vars(wildcards))
    params = {
        name: value(wildcards) if callable(value) else value for name, value in own.params.items()
    }
    command = filled(
        own.rule.shellcmd,
        input=SimpleNamespace(**inputs),
        output=output,
        params=SimpleNamespace(**params),
        wildcards=wildcards,
        log="",
    )
    files = [
        file for value in inputs.values() for file in ([value] if isinstance(value, str) else value)
    ]
    return files, output, command.removeprefix("python -m vecsweep ").removesuffix(" 2> ")


def of_group(stage, model, tasks, layers):
    """Inputs, outputs, and commands with --and between them, of several tasks."""
    first, last = layers.split("-") if layers else ("", "")
    made = [of_task(stage, model=model, task=task, first=first, last=last) for task in tasks]
    files = dict.fromkeys(file for inputs, _, _ in made for file in inputs)
    return list(files), [output for _, output, _ in made], " --and ".join(c for *_, c in made)


for model, by_stage in TASK_GROUPS.items():
    for stage, groups in by_stage.items():
        for members in groups:
            for layers in layer_blocks(model) if stage == "interventions" else [""]:
                inputs, outputs, command = of_group(stage, model, members, layers)
                parts = [stage, model, members[0], *([layers] if layers else [])]
                place = "/".join(parts)

                rule:
                    name:
                        "_".join([*parts[:3], *layers.split("-")]).rstrip("_")
                    input:
                        inputs,
                    output:
                        outputs,
                    log:
                        f"logs/{place}.log",
                    benchmark:
                        f"results/benchmarks/{place}.tsv"
                    conda:
                        "../../envs/engine.yaml"
                    resources:
                        # States take seconds a task.
                        **asks(stage, model, 1 if stage == "states" else len(members)),
                    params:
                        command=command,
                        step=STEP_VERSIONS[stage],
                    message:
                        f"{model}: {stage} of {', '.join(members)}"
                    shell:
                        "python -m vecsweep {params.command} 2> {log}"
