rule summary:
    input:
        reads(SUMMARY, [Cell()]),
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
        **REQUESTS.of(SUMMARY),
    params:
        # The grid, not the files: thousands of paths do not fit a command line.
        settings=json.dumps(SWEEP.settings(SUMMARY, Cell())),
    message:
        "summary.duckdb and the tables"
    shell:
        VECSWEEP
        + " summary --settings {params.settings:q} --memory {resources.mem_mb}"
        + f" --results {shlex.quote(RESULTS)}"
        " --database {output.database} --tables {output.tables} > {log} 2>&1"
