rule selection:
    input:
        model="results/models/{model}/model.json",
        ranks=preshards,
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
        vectors="results/ovectors/{model}/{task}.safetensors",
        rival=lambda wildcards: [
            f"results/ovectors/{wildcards.model}/{task}.safetensors"
            for task in rivals(wildcards.task)
        ],
        search=over_layers("results/interventions/{model}/{task}/{layers}.parquet"),
        elsewhere=lambda wildcards: [
            f"results/prompts/{wildcards.model}/{task}.parquet"
            for task in other_domains(wildcards.task)
        ],
    output:
        "results/selection/{model}/{task}.parquet",
    log:
        "logs/selection/{model}/{task}.log",
    benchmark:
        "results/benchmarks/selection/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("selection"),
    params:
        engine=engine_options,
        settings=json.dumps(SEARCH_SETTINGS),
        all_layers=lambda wildcards: (
            "--all-layers"
            if wildcards.task == config["interventions"]["controls_over_layers"]
            else ""
        ),
        step=STEP_VERSIONS["selection"],
    message:
        "{wildcards.model}: the best o-vector of {wildcards.task} and its controls"
    shell:
        "python -m vecsweep selection --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} --vectors {input.vectors} --rival {input.rival}"
        " --search {input.search} --elsewhere {input.elsewhere} {params.all_layers}"
        " {params.engine} --settings {params.settings:q}"
        " --output {output} 2> {log}"
