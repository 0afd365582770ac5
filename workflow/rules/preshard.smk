rule preshard:
    input:
        model="results/models/{model}/model.json",
    output:
        directory("results/preshard/{model}"),
    log:
        "logs/preshard/{model}.log",
    benchmark:
        "results/benchmarks/preshard/{model}.tsv"
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("preshard"),
    params:
        engine=sharding_options,
        step=STEP_VERSIONS["preshard"],
    message:
        "{wildcards.model}: the slices of each rank"
    shell:
        "python -m vecsweep preshard --model {input.model} {params.engine} --output {output} 2> {log}"
