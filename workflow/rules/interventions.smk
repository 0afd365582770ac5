rule interventions:
    input:
        model="results/models/{model}/model.json",
        ranks=preshards,
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
        vectors="results/ovectors/{model}/{task}.safetensors",
    output:
        "results/interventions/{model}/{task}/{first}-{last}.parquet",
    log:
        "logs/interventions/{model}/{task}/{first}-{last}.log",
    benchmark:
        "results/benchmarks/interventions/{model}/{task}/{first}-{last}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("interventions"),
    params:
        engine=engine_options,
        settings=json.dumps(SEARCH_SETTINGS),
        step=STEP_VERSIONS["interventions"],
    message:
        "{wildcards.model}: o-vectors of {wildcards.task} from layers {wildcards.first} to {wildcards.last}"
    shell:
        "python -m vecsweep interventions --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} --vectors {input.vectors} --first {wildcards.first}"
        " --last {wildcards.last} {params.engine}"
        " --settings {params.settings:q} --output {output} 2> {log}"
