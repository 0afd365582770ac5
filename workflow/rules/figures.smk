from vecsweep.figures import FIGURES as DRAWN

FIGURES = expand("results/figures/{name}.{format}", name=DRAWN, format=["svg", "png"])


# A rule each: a caption belongs to a rule, and a figure runs without the others.
for name, figure in DRAWN.items():

    rule:
        name:
            f"figure_{name}"
        input:
            "results/summary.duckdb",
        output:
            svg=report(
                f"results/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category=figure.category,
                labels={"figure": figure.title},
            ),
            png=f"results/figures/{name}.png",
        log:
            f"logs/figures/{name}.log",
        benchmark:
            f"results/benchmarks/figures/{name}.tsv"
        # Seconds each: a Slurm job would cost more than the drawing.
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            name=name,
            version=figure.version,
        message:
            "figure {params.name}"
        shell:
            "python -m vecsweep figures --name {params.name} --database {input}"
            " --svg {output.svg} --png {output.png} 2> {log}"
