"""What no rule runs: each tool is a module here, and `vecsweep NAME` on the command line."""

TOOLS = {
    "show": "one prompt, layer by layer: top tokens, ranks, stages",
    "try": "a task's vectors on any words of yours: before and after",
    "preview": "prompts as a model reads them, and what is dropped",
    "finding": "what the sweep found, in three lines",
    "status": "how far the sweep is, what failed, what jobs took",
    "plan": "what a model of the config needs: devices, memory, time",
    "prune": "list, ask, remove: results that the config no longer has",
    "resume": "go on after Snakemake was killed on a cluster",
    "merge": "join the summaries of two sweeps into one database",
    "dictionary": "results/README.md: tables, columns and tensors, described",
    "bench": "what the engine costs beside its peers, as ratios",
    "memory": "peak host memory of each process while a model is loaded",
    "width": "time and memory of a BLOOM layer at its true width, and of all 70 by it",
    "scale": "what the summary of a large sweep takes of time and memory",
    "dag": "what Snakemake takes to lay out a large sweep, and to find it finished",
    "build": "rebuild the relations' data from its sources",
}
