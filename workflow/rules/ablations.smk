rule ablations:
    input:
        model="results/models/{model}/model.json",
        ranks=preshards,
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
    output:
        "results/ablations/{model}/{task}.parquet",
    log:
        "logs/ablations/{model}/{task}.log",
    benchmark:
        "results/benchmarks/ablations/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("ablations"),
    params:
        engine=engine_options,
        settings=json.dumps(
            {
                "max_prompts": config["ablations"]["max_prompts"],
                "seed": config["prompts"]["seed"],
            }
        ),
        twins=lambda wildcards: "--twins" if wildcards.task in TWINS else "",
        step=STEP_VERSIONS["ablations"],
    message:
        "{wildcards.model}: ablations on {wildcards.task}"
    shell:
        "python -m vecsweep ablations --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} {params.twins} {params.engine}"
        " --settings {params.settings:q} --output {output} 2> {log}"
