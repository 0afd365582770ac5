rule summary:
    input:
        models=expand("results/models/{model}/model.json", model=MODELS),
        vocabularies=expand("results/models/{model}/vocabulary.parquet", model=MODELS),
        prompts=expand("results/prompts/{model}/{task}.parquet", model=MODELS, task=TASKS),
        lens=[
            f"results/lens/{model}/{task}/{layers}.parquet"
            for model in MODELS
            for task in TASKS
            for layers in layer_blocks(model)
        ],
        stages=expand("results/stages/{model}/{task}.parquet", model=MODELS, task=TASKS),
        ovectors=expand("results/ovectors/{model}/{task}.parquet", model=MODELS, task=INJECTED),
        interventions=[
            f"results/interventions/{model}/{task}/{layers}.parquet"
            for model in MODELS
            for task in INJECTED
            for layers in layer_blocks(model)
        ],
        selection=expand("results/selection/{model}/{task}.parquet", model=MODELS, task=INJECTED),
        ablations=expand("results/ablations/{model}/{task}.parquet", model=MODELS, task=ABLATED),
    output:
        database="results/summary.duckdb",
        tables=report(
            directory("results/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        "logs/summary.log",
    benchmark:
        "results/benchmarks/summary.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks("summary"),
    params:
        # The grid, not the files: thousands of paths do not fit a command line.
        grid=json.dumps({model: layer_blocks(model) for model in MODELS}),
        tasks=json.dumps({"all": TASKS, "injected": INJECTED, "ablated": ABLATED}),
        resamples=config["summary"]["resamples"],
        step=STEP_VERSIONS["summary"],
    message:
        "summary.duckdb and the tables"
    shell:
        "python -m vecsweep summary --results results --grid {params.grid:q} --tasks {params.tasks:q}"
        " --resamples {params.resamples} --memory {resources.mem_mb}"
        " --database {output.database} --tables {output.tables} 2> {log}"
