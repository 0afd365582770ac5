"""What a job asks of the machine or cluster: memory, time, GPUs, nodes, by the stage's row and the site."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

from vecsweep import Problem, nearest
from vecsweep.config import parsed
from vecsweep.files import text_in
from vecsweep.layout import Stage
from vecsweep.tools import plan

NAMES = ("account", "cpu_partition", "gpu_partition", "gpu_model")  # or nothing
NUMBERS = {"gpus_per_node": 0, "gpu_memory_gb": 1, "cpus_per_gpu": 1, "max_hours": 1}  # at least
KEYS = (*NAMES, *NUMBERS, "modules")


def read_site(folder: Path) -> dict:
    """The cluster's names and sizes: `site.yaml` of a profile's folder, else `site.example.yaml`.

    Problem at a key that is unknown, missing, or of another kind than in the example.
    """
    own = folder / "site.yaml"
    path = own if own.exists() else folder / "site.example.yaml"
    site = parsed(text_in(path), path)
    if not isinstance(site, dict) or site.keys() != set(KEYS):
        given = site if isinstance(site, dict) else {}
        wrong = ", ".join(
            f"{key}{nearest(key, KEYS)}" for key in sorted({*map(str, given)} - {*KEYS})
        )
        lacking = ", ".join(key for key in KEYS if key not in given)
        said = [f"unknown: {wrong}"] * bool(wrong) + [f"missing: {lacking}"] * bool(lacking)
        raise Problem(f"{path}: keys that are {', '.join(said)}; write those of site.example.yaml")
    for key, least in NUMBERS.items():
        value = site[key]
        if key in ("gpu_memory_gb", "cpus_per_gpu") and site["gpus_per_node"] == 0:
            continue  # of no GPU
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise Problem(f"{path}, {key}: {value!r} is no number from {least} on; write one")
    for key in NAMES:
        if site[key] is not None and not isinstance(site[key], str):
            raise Problem(
                f"{path}, {key}: {site[key]!r} is no name; write it in quotes, or nothing"
            )
    if not isinstance(site["modules"], list) or not all(
        isinstance(m, str) for m in site["modules"]
    ):
        raise Problem(
            f"{path}, modules: {site['modules']!r} is no list of names; write [] for none"
        )
    return site


class Requests:
    """The `resources:` of jobs, for the models of a config at a site."""

    def __init__(self, models: dict, site: dict):
        self.models, self.site = models, site

    @functools.cache  # noqa: B019 - one object a run
    def weights_gb(self, model: str) -> float:
        """Size of a model's weights, from its sizes where `vecsweep plan` knows them.

        Else 12 d² parameters a layer, at d = 128 layers: near for Llama, five times GPT-2's.
        """
        settings = self.models[model]
        known = plan.architecture(model, settings) or {}
        parameters = known.get("parameters") or 12 * 128**2 * settings["layers"] ** 3
        return parameters * plan.BYTES[settings["dtype"]] / 1e9

    @functools.cache  # noqa: B019
    def planned_memory(self, model: str) -> int | None:
        """MB for each node of a job that runs the model, by `vecsweep plan`; None if it cannot say."""
        settings = self.models[model]
        each = self.site["gpus_per_node"] or settings["shards"]
        return plan.resources(model, settings, gpus_per_node=each).get("mem_mb")

    def small_gpus(self) -> list[str]:
        """A line for each model that does not fit its GPUs, to say before any job starts."""
        lines = []
        for name, settings in self.models.items() if self.site["gpus_per_node"] else ():
            each = self.weights_gb(name) / settings["shards"]
            room = plan.HEADROOM * self.site["gpu_memory_gb"]
            if not settings["offload"] and self.planned_memory(name) and each > room:
                lines.append(
                    f"{name}: {each:.0f} GB of weights for each of {settings['shards']} shards, but a "
                    f"GPU has {self.site['gpu_memory_gb']} GB; `vecsweep plan {name}` says how many it "
                    "needs"
                )
        return lines

    def together(self, stage: Stage, model: str) -> int:
        """How many tasks one job of a cluster takes, by `vecsweep plan`'s share of loading."""
        settings = self.models[model]
        return plan.together(self.weights_gb(model) * 1e9, settings, stage)

    def of(self, stage: Stage, model: str | None = None, tasks: int = 1) -> dict:
        """The `resources:` of a stage's rule; `model` where it is no wildcard, and its `tasks`.

        A job that failed asks for as much again, in memory and time. `gpus` counts a whole job's,
        `gres` each node's. `gpu_jobs` is for workstations: profile `local` allows one at a time.
        """
        on_gpu, site = stage.runs_model, self.site

        def by(value: Callable):
            # Snakemake drops a resource that is None.
            def resource(wildcards, attempt):
                name = model or getattr(wildcards, "model", None)
                shards = self.models[name]["shards"] if on_gpu else 1
                each = site["gpus_per_node"]
                nodes = math.ceil(shards / each) if each else 1
                return value(name, attempt, shards, nodes)

            return resource

        def memory(name, attempt, shards, nodes):
            if on_gpu and self.planned_memory(name):
                return attempt * self.planned_memory(name)
            # Each node of several reads its own share of the weights.
            return attempt * linear(stage.memory, self.weights_gb(name) / nodes if name else 0)

        def minutes(name, attempt, shards, nodes):
            each = linear(stage.minutes, self.weights_gb(name) if name else 0)
            return min(attempt * (tasks if stage.long else 1) * each, 60 * site["max_hours"])

        asked = {
            "mem_mb": by(memory),
            "runtime": by(minutes),
            "slurm_account": site["account"],
            "slurm_partition": site["gpu_partition" if on_gpu else "cpu_partition"],
        }
        if on_gpu:
            asked["gpu_jobs"] = 1
        if on_gpu and site["gpus_per_node"]:
            kind = f"{site['gpu_model']}:" if site["gpu_model"] else ""
            cpus = site["cpus_per_gpu"]
            asked |= {
                "gpus": by(lambda name, attempt, shards, nodes: shards),
                "gres": by(lambda name, attempt, shards, nodes: f"gpu:{kind}{shards // nodes}"),
                "cpus_per_task": by(lambda name, attempt, shards, nodes: cpus * shards // nodes),
                # One task a node; with `mpi` Slurm starts the shell once and vecsweep calls srun.
                "nodes": by(lambda name, attempt, shards, nodes: nodes),
                "tasks": by(lambda name, attempt, shards, nodes: nodes if nodes > 1 else None),
                "tasks_per_gpu": 0,
                "mpi": by(lambda name, attempt, shards, nodes: "srun" if nodes > 1 else None),
            }
        return {key: value for key, value in asked.items() if value is not None}


def linear(numbers: tuple[int, int, int], gigabytes: float) -> int:
    """(base, times the weights in GB, at most) at a size of the weights."""
    base, slope, most = numbers
    return math.ceil(min(base + slope * gigabytes, most))
