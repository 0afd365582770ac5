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
    conda:
        "../../envs/engine.yaml"
    params:
        batch_tokens=lookup(dpath="models/{model}/batch_tokens", within=config),
        step=STEP_VERSIONS["states"],
    message:
        "{wildcards.model}: hidden states of {wildcards.task}"
    shell:
        "python -m vecsweep states --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} --batch-tokens {params.batch_tokens}"
        " --output {output} 2> {log}"
