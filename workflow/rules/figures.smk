import json

PICTURES = expand("results/figures/{name}.{format}", name=DRAWN, format=["svg", "png"])


def drawing(names):
    """What a job runs: the commands of its figures, in one process."""
    return " --and ".join(
        shlex.join(
            ["figures", "--settings", json.dumps({"name": name})]
            + ["--database", f"{RESULTS}/summary.duckdb"]
            + ["--svg", f"{RESULTS}/figures/{name}.svg"]
            + ["--png", f"{RESULTS}/figures/{name}.png"]
        )
        for name in names
    )


# Figures that are to be drawn share a few jobs, named by their first; the others have one each.
for names in FIGURE_GROUPS + [[name] for name in DRAWN if name not in sum(FIGURE_GROUPS, [])]:

    rule:
        name:
            f"figure_{names[0]}"
        input:
            database=DATABASE,
            settings=[f"results/settings/figures/{name}.json" for name in names],
        output:
            # A caption each.
            [
                report(
                    f"results/figures/{name}.svg",
                    caption=f"../report/{name}.rst",
                    category=DRAWN[name].category,
                    labels={"figure": DRAWN[name].title},
                )
                for name in names
            ],
            [f"results/figures/{name}.png" for name in names],
        log:
            f"logs/figures/{names[0]}.log",
        benchmark:
            f"results/benchmarks/figures/{names[0]}.tsv"
        # Seconds each: a Slurm job would cost more than the drawing.
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            command=drawing(names),
        message:
            "figure " + ", ".join(names)
        shell:
            f"{VECSWEEP} {{params.command}} > {{log}} 2>&1"
