rule stages:
    input:
        lens=over_layers("results/lens/{model}/{task}/{layers}.parquet"),
    output:
        "results/stages/{model}/{task}.parquet",
    log:
        "logs/stages/{model}/{task}.log",
    benchmark:
        "results/benchmarks/stages/{model}/{task}.tsv"
    wildcard_constraints:
        model=ONE_BY_ONE,
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks("stages"),
    params:
        step=STEP_VERSIONS["stages"],
    message:
        "{wildcards.model}: stages of {wildcards.task}"
    shell:
        "python -m vecsweep stages --lens {input.lens} --output {output} 2> {log}"
