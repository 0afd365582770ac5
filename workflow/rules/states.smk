rule states:
    input:
        model="results/models/{model}/model.json",
        ranks=preshards,
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
    output:
        "results/states/{model}/{task}.safetensors",
    log:
        "logs/states/{model}/{task}.log",
    benchmark:
        "results/benchmarks/states/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
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
        "python -m vecsweep states --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} {params.engine} --output {output} 2> {log}"
