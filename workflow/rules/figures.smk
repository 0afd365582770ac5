import json

from vecsweep.figures import FIGURES as DRAWN

PICTURES = expand("results/figures/{name}.{format}", name=DRAWN, format=["svg", "png"])


# A rule each: a caption belongs to a rule, and a figure runs without the others.
for name, figure in DRAWN.items():

    rule:
        name:
            f"figure_{name}"
        input:
            database="results/summary.duckdb",
            settings=f"results/settings/figures/{name}.json",
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
            settings=json.dumps({"name": name}),
        message:
            f"figure {name}"
        shell:
            "python -m vecsweep figures --settings {params.settings:q} --database {input.database}"
            " --svg {output.svg} --png {output.png} 2> {log}"
