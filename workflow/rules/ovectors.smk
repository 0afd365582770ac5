rule ovectors:
    input:
        readout="results/models/{model}/readout.safetensors",
        prompts="results/prompts/{model}/{task}.parquet",
        states="results/states/{model}/{task}.safetensors",
        stages="results/stages/{model}/{task}.parquet",
    output:
        vectors="results/ovectors/{model}/{task}.safetensors",
        table="results/ovectors/{model}/{task}.parquet",
    log:
        "logs/ovectors/{model}/{task}.log",
    benchmark:
        "results/benchmarks/ovectors/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/engine.yaml"
    resources:
        **asks("ovectors"),
    params:
        donors=config["ovectors"]["donors"],
        seed=config["prompts"]["seed"],
        step=STEP_VERSIONS["ovectors"],
    message:
        "{wildcards.model}: o-vectors of {wildcards.task}"
    shell:
        "python -m vecsweep ovectors --readout {input.readout} --prompts {input.prompts}"
        " --states {input.states} --stages {input.stages} --donors {params.donors}"
        " --seed {params.seed} --vectors {output.vectors} --table {output.table} 2> {log}"
