rule page:
    input:
        DATABASE,
        [path for path in PICTURES if path.endswith(".svg")],
        expand(HERE / "workflow" / "report" / "{name}.rst", name=DRAWN),
        declared(SWEEP.settings_file(PAGE, Cell())),
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
    params:
        places=shlex.join(
            ["--database", f"{RESULTS}/summary.duckdb", "--figures", f"{RESULTS}/figures"]
            + ["--output", f"{RESULTS}/index.html"]
        ),
    message:
        "index.html"
    shell:
        f"{VECSWEEP} page {{params.places}} 2> {{log}}"
