rule prompts:
    input:
        model="results/models/{model}/model.json",
        task=lambda wildcards: TASK_FILES[wildcards.task],
        data=lambda wildcards: LOADED[wildcards.task].data,
    output:
        "results/prompts/{model}/{task}.parquet",
    log:
        "logs/prompts/{model}/{task}.log",
    benchmark:
        "results/benchmarks/prompts/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("prompts"),
    params:
        settings=prompt_settings,
        step=STEP_VERSIONS["prompts"],
    message:
        "{wildcards.model}: prompts of {wildcards.task}"
    shell:
        "python -m vecsweep prompts --model {input.model} --task {input.task}"
        " --settings {params.settings:q} --output {output} 2> {log}"
