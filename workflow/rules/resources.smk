import functools
import math

import yaml

from snakemake.logging import logger

from vecsweep.tools import plan

SITE_FILE = f"{workflow.basedir}/workflow/profiles/slurm/site.yaml"
with open(SITE_FILE) as file:
    SITE = yaml.safe_load(file)
SITE_KEYS = {"account", "cpu_partition", "gpu_partition", "gpus_per_node", "gpu_model"}
SITE_KEYS |= {"gpu_memory_gb", "cpus_per_gpu", "max_hours", "modules"}
if SITE.keys() != SITE_KEYS:
    wrong = ", ".join(sorted(SITE.keys() ^ SITE_KEYS))
    raise WorkflowError(f"{SITE_FILE}: keys that are unknown or missing: {wrong}")

# Jobs find the package also in a conda environment or container that does not have it.
LOADS = f'[ -z "$SLURM_JOB_ID" ] || module load {" ".join(SITE["modules"])}; '
shell.prefix(
    f"export PYTHONPATH={workflow.basedir}/workflow; " + (LOADS if SITE["modules"] else "")
)

# MB and minutes of a job's first attempt: (base, times the weights in GB, at most). Bases hold
# Python with torch and Snakemake's own 250 MB; the rest is rounded up from benchmark files.
MEMORY = {
    "models": (3000, 2500, 64_000),  # GGUF files are unpacked in memory, others only pointed to
    "preshard": (3000, 1500, 500_000),
    "prompts": (2000, 0, 2000),
    "states": (3000, 1500, 500_000),
    "lens": (2000, 1000, 32_000),  # the readout in float32
    "stages": (2000, 0, 2000),
    "ovectors": (2000, 0, 2000),
    "interventions": (3000, 1500, 500_000),
    "selection": (3000, 1500, 500_000),
    "ablations": (3000, 1500, 500_000),
    "summary": (8000, 0, 8000),
}
MINUTES = {
    "models": (30, 5, 720),
    "preshard": (30, 5, 720),
    "prompts": (20, 0, 20),
    "states": (30, 5, 720),
    "lens": (30, 2, 240),
    "stages": (20, 0, 20),
    "ovectors": (20, 0, 20),
    "interventions": (120, 20, 1440),
    "selection": (120, 20, 1440),
    "ablations": (120, 20, 1440),
    "summary": (120, 0, 120),
}
ON_GPU = ("preshard", "states", "interventions", "selection", "ablations")


@functools.cache
def weights_gb(model):
    """Size of a model's weights, from its sizes where `vecsweep plan` knows them.

    Else 12 d² parameters a layer, at d = 128 layers: near for Llama, five times GPT-2's.
    """
    settings = config["models"][model]
    known = plan.architecture(model, settings) or {}
    parameters = known.get("parameters") or 12 * 128**2 * settings["layers"] ** 3
    return parameters * plan.BYTES[settings["dtype"]] / 1e9


@functools.cache
def planned_memory(model):
    """MB for each node of a job that runs the model, by `vecsweep plan`; None if it cannot say."""
    each = SITE["gpus_per_node"] or config["models"][model]["shards"]
    return plan.resources(model, config["models"][model], gpus_per_node=each).get("mem_mb")


def warn_of_small_gpus():
    """Say before any job starts which models do not fit their GPUs."""
    for name, settings in config["models"].items():
        each = weights_gb(name) / settings["shards"]
        if settings["offload"]:
            continue
        if planned_memory(name) and each > plan.HEADROOM * SITE["gpu_memory_gb"]:
            logger.warning(
                f"{name}: {each:.0f} GB of weights for each of {settings['shards']} shards, but a"
                f" GPU has {SITE['gpu_memory_gb']} GB; `vecsweep plan {name}` says how many it needs"
            )


if workflow.is_main_process and SITE["gpus_per_node"]:
    warn_of_small_gpus()


def linear(numbers, gigabytes):
    base, slope, most = numbers
    return math.ceil(min(base + slope * gigabytes, most))


def asks(stage, model=None, tasks=1):
    """The `resources:` of a stage's rule; `model` where it is no wildcard, and its `tasks`.

    A job that failed asks for as much again, in memory and time. `gpus` counts a whole job's,
    `gres` each node's. `gpu_jobs` is for workstations: profile `local` allows one at a time.
    """
    on_gpu = stage in ON_GPU

    def of(value):
        # Snakemake drops a resource that is None.
        def resource(wildcards, attempt):
            name = model or getattr(wildcards, "model", None)
            shards = config["models"][name]["shards"] if on_gpu else 1
            each = SITE["gpus_per_node"]
            nodes = math.ceil(shards / each) if each else 1
            return value(name, attempt, shards, nodes)

        return resource

    def memory(name, attempt, shards, nodes):
        if on_gpu and planned_memory(name):
            return attempt * planned_memory(name)
        # Each node of several reads its own share of the weights.
        return attempt * linear(MEMORY[stage], weights_gb(name) / nodes if name else 0)

    def minutes(name, attempt, shards, nodes):
        most = 60 * SITE["max_hours"]
        each = linear(MINUTES[stage], weights_gb(name) if name else 0)
        return min(attempt * tasks * each, most)

    asked = {
        "mem_mb": of(memory),
        "runtime": of(minutes),
        "slurm_account": SITE["account"],
        "slurm_partition": SITE["gpu_partition" if on_gpu else "cpu_partition"],
    }
    if on_gpu:
        asked["gpu_jobs"] = 1
    if on_gpu and SITE["gpus_per_node"]:
        kind = f"{SITE['gpu_model']}:" if SITE["gpu_model"] else ""
        asked |= {
            "gpus": of(lambda name, attempt, shards, nodes: shards),
            "gres": of(lambda name, attempt, shards, nodes: f"gpu:{kind}{shards // nodes}"),
            "cpus_per_task": of(
                lambda name, attempt, shards, nodes: SITE["cpus_per_gpu"] * shards // nodes
            ),
            # One task a node; with `mpi` Slurm starts the shell once and vecsweep calls srun.
            "nodes": of(lambda name, attempt, shards, nodes: nodes),
            "tasks": of(lambda name, attempt, shards, nodes: nodes if nodes > 1 else None),
            "tasks_per_gpu": 0,
            "mpi": of(lambda name, attempt, shards, nodes: "srun" if nodes > 1 else None),
        }
    return {key: value for key, value in asked.items() if value is not None}
