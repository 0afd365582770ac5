rule models:
    output:
        description="results/models/{model}/model.json",
        readout="results/models/{model}/readout.safetensors",
        vocabulary="results/models/{model}/vocabulary.parquet",
    log:
        "logs/models/{model}.log",
    benchmark:
        "results/benchmarks/models/{model}.tsv"
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("models"),
    params:
        config=lambda wildcards: json.dumps(fetching(wildcards.model)),
        step=STEP_VERSIONS["models"],
    message:
        "{wildcards.model}: weights and readout"
    shell:
        "python -m vecsweep models --name {wildcards.model} --config {params.config:q}"
        " --description {output.description} --readout {output.readout}"
        " --vocabulary {output.vocabulary} 2> {log}"
