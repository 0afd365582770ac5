rule lens:
    input:
        model="results/models/{model}/model.json",
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
        states="results/states/{model}/{task}.safetensors",
    output:
        "results/lens/{model}/{task}/{first}-{last}.parquet",
    log:
        "logs/lens/{model}/{task}/{first}-{last}.log",
    benchmark:
        "results/benchmarks/lens/{model}/{task}/{first}-{last}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("lens"),
    params:
        top_k=config["lens"]["top_k"],
        step=STEP_VERSIONS["lens"],
    message:
        "{wildcards.model}: early decoding of {wildcards.task}, layers {wildcards.first} to {wildcards.last}"
    shell:
        "python -m vecsweep lens --model {input.model} --readout {input.readout}"
        " --prompts {input.prompts} --states {input.states} --first {wildcards.first}"
        " --last {wildcards.last} --top-k {params.top_k} --output {output} 2> {log}"
