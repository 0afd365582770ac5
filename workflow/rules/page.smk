rule page:
    input:
        "results/summary.duckdb",
        [path for path in PICTURES if path.endswith(".svg")],
        expand(HERE / "workflow" / "report" / "{name}.rst", name=DRAWN),
        SWEEP.settings_file(PAGE, Cell()),
    output:
        "results/index.html",
    log:
        "logs/page.log",
    benchmark:
        "results/benchmarks/page.tsv"
    # Seconds: a Slurm job would cost more.
    localrule: True
    conda:
        "../../envs/tables.yaml"
    message:
        "index.html"
    shell:
        "python -m vecsweep page 2> {log}"
