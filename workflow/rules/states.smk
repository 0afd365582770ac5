STATES = (
    "python -m vecsweep states --model {input.model} --readout {input.readout}"
    " --prompts {input.prompts} {params.engine} --output {output} 2> {log}"
)


rule states:
    input:
        model="results/models/{model}/model.json",
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
    output:
        "results/states/{model}/{task}.safetensors",
    log:
        "logs/states/{model}/{task}.log",
    benchmark:
        "results/benchmarks/states/{model}/{task}.tsv"
    wildcard_constraints:
        model=one_of(model for model in MODELS if model not in TASK_GROUPS),
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("states"),
    params:
        engine=engine_options,
        step=STEP_VERSIONS["states"],
    message:
        "{wildcards.model}: hidden states of {wildcards.task}"
    shell:
        STATES


# A model with tasks_per_job takes several tasks for each time that it is loaded.
for name, groups in TASK_GROUPS.items():
    for members in groups:

        rule:
            name:
                f"states_{name}_{members[0]}"
            input:
                model=f"results/models/{name}/model.json",
                readout=f"results/models/{name}/readout.safetensors",
                prompts=expand("results/prompts/{model}/{task}.parquet", model=name, task=members),
            output:
                expand("results/states/{model}/{task}.safetensors", model=name, task=members),
            log:
                f"logs/states/{name}/{members[0]}.log",
            benchmark:
                f"results/benchmarks/states/{name}/{members[0]}.tsv"
            conda:
                "../../envs/engine.yaml"
            resources:
                **asks("states", name),
            params:
                engine=engine_options(name),
                step=STEP_VERSIONS["states"],
            message:
                f"{name}: hidden states of {', '.join(members)}"
            shell:
                STATES
