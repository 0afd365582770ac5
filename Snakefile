from snakemake.utils import min_version

min_version("9.0")


# A --configfile replaces the default config; it is never mixed with it.
if not workflow.configfiles:

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# Used with --sdm apptainer alone.
if SITE["container"]:

    container: SITE["container"]


include: "workflow/rules/stages.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/page.smk"


rule all:
    default_target: True
    input:
        "results/summary.duckdb",
        PICTURES,
        SWEEP.outputs(PAGE, Cell())["output"],
        UNREAD,
