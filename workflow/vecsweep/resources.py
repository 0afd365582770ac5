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
MAY = ("slurm_extra", "container", "models")  # may be left out


def read_site(folder: Path) -> dict:
    """The cluster's names and sizes: `site.yaml` of a profile's folder, else `site.example.yaml`.

    Problem at a key that is unknown, missing, or of another kind than in the example.
    """
    own = folder / "site.yaml"
    path = own if own.exists() else folder / "site.example.yaml"
    site = parsed(text_in(path), path)
    given = site if isinstance(site, dict) else {}
    unknown, lacking = given.keys() - {*KEYS, *MAY}, [key for key in KEYS if key not in given]
    if unknown or lacking:
        wrong = ", ".join(f"{key}{nearest(key, KEYS + MAY)}" for key in sorted(map(str, unknown)))
        said = [f"unknown: {wrong}"] * bool(wrong)
        said += [f"missing: {', '.join(lacking)}"] * bool(lacking)
        raise Problem(f"{path}: keys that are {', '.join(said)}; write those of site.example.yaml")
    site = {"slurm_extra": None, "container": None, "models": {}} | site
    check_values(site, path)
    if not isinstance(site["modules"], list) or not all(
        isinstance(m, str) for m in site["modules"]
    ):
        raise Problem(
            f"{path}, modules: {site['modules']!r} is no list of names; write [] for none"
        )
    site["models"] = site["models"] or {}
    if not isinstance(site["models"], dict):
        raise Problem(f"{path}, models: {site['models']!r} has no keys; write {{}} for none")
    own = (*NAMES, *NUMBERS, "slurm_extra")
    for model, other in site["models"].items():
        where = f"{path}, models > {model}"
        if not isinstance(other, dict):
            raise Problem(f"{where}: {other!r} has no keys; write {{key: value}}")
        for key in other.keys() - {*own}:
            raise Problem(
                f"{where}: unknown key '{key}'{nearest(key, own)}; write {', '.join(own)}"
            )
        check_values(site | other, where)
    return site


def check_values(site: dict, where) -> None:
    """Problem at a number or name of another kind than in the example; `where` is for messages."""
    for key, least in NUMBERS.items():
        value = site[key]
        if key in ("gpu_memory_gb", "cpus_per_gpu") and site["gpus_per_node"] == 0:
            continue  # of no GPU
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise Problem(f"{where}, {key}: {value!r} is no number from {least} on; write one")
    for key in (*NAMES, "slurm_extra", "container"):
        if site[key] is not None and not isinstance(site[key], str):
            raise Problem(
                f"{where}, {key}: {site[key]!r} is no name; write it in quotes, or nothing"
            )


class Requests:
    """The `resources:` of jobs, for the models of a config at a site."""

    def __init__(self, models: dict, site: dict):
        self.models, self.site = models, site
        for name in site["models"].keys() - models.keys():
            if near := nearest(name, models):  # one that is near none is of another config
                raise Problem(f"site.yaml, models: '{name}' is no model of the config{near}")

    def at(self, model: str | None) -> dict:
        """The site's names and sizes for a model: its own nodes, where the site file gives it some."""
        return self.site | self.site["models"].get(model, {})

    def cores(self, model: str | None) -> int:
        """CPU cores for each process of a model on a site without GPUs; 0 where it runs on GPUs."""
        site = self.at(model)
        return 0 if site["gpus_per_node"] else site["cpus_per_gpu"] or 1

    @functools.cache  # noqa: B019 - one object a run
    def weights_gb(self, model: str) -> float:
        """Size of a model's weights, from its sizes where `vecsweep plan` knows them.

        Else 12 d² parameters a layer, at d = 128 layers: near for Llama, five times GPT-2's.
        """
        settings = self.models[model]
        try:
            known = plan.architecture(model, settings) or {}
        except Problem:  # what is finished needs no config.json; what is not says so by itself
            known = {}
        parameters = known.get("parameters") or 12 * 128**2 * settings["layers"] ** 3
        return parameters * plan.BYTES[settings["dtype"]] / 1e9

    @functools.cache  # noqa: B019
    def planned_memory(self, model: str) -> int | None:
        """MB for each node of a job that runs the model, by `vecsweep plan`; None if it cannot say."""
        settings = self.models[model]
        each = self.at(model)["gpus_per_node"] or settings["shards"]
        try:
            return plan.node_memory(model, settings, each)
        except Problem:
            return None

    def check_spread(self) -> None:
        """Problem at a model whose shards its nodes cannot share evenly: of a cluster alone."""
        for name, settings in self.models.items():
            shards, each = settings["shards"], self.at(name)["gpus_per_node"]
            nodes = math.ceil(shards / each) if each else 1
            if shards % nodes:
                raise Problem(
                    f"config, models > {name}: {shards} shards do not spread evenly over the {nodes} "
                    f"nodes that have {each} GPUs each (gpus_per_node in site.yaml); `vecsweep plan "
                    f"{name}` lists what does"
                )

    def small_gpus(self) -> list[str]:
        """A line for each model that does not fit its GPUs, to say before any job starts."""
        lines = []
        for name, settings in self.models.items():
            site, each = self.at(name), self.weights_gb(name) / settings["shards"]
            if not site["gpus_per_node"]:
                continue
            room = plan.HEADROOM * site["gpu_memory_gb"]
            if not settings["offload"] and self.planned_memory(name) and each > room:
                lines.append(
                    f"{name}: {each:.0f} GB of weights for each of {settings['shards']} shards, but a "
                    f"GPU has {site['gpu_memory_gb']} GB; `vecsweep plan {name}` says how many it "
                    "needs"
                )
        return lines

    def together(self, stage: Stage, model: str) -> int:
        """How many tasks one job of a cluster takes, by `vecsweep plan`'s share of loading."""
        settings = self.models[model]
        weights, cores = self.weights_gb(model) * 1e9, self.cores(model)
        return plan.together(weights, settings, stage, cores=cores)

    def threads(self, stage: Stage, model: str) -> int:
        """Threads of a cluster's job: one beside GPUs, else all cores of a process."""
        return max(1, self.cores(model)) if stage.runs_model else 1

    def of(self, stage: Stage, model: str | None = None, tasks: int = 1) -> dict:
        """The `resources:` of a stage's rule; `model` where it is no wildcard, and its `tasks`.

        A job that failed asks for as much again, in memory and time. `gpus` counts a whole job's,
        `gres` each node's. `gpu_jobs` is for workstations: profile `local` allows one at a time.
        """
        on_gpu = stage.runs_model

        def by(value: Callable):
            # Snakemake drops a resource that is None.
            def resource(wildcards, attempt):
                name = model or getattr(wildcards, "model", None)
                shards = self.models[name]["shards"] if on_gpu else 1
                site = self.at(name)
                each = site["gpus_per_node"]
                nodes = math.ceil(shards / each) if each else 1
                return value(name, attempt, site, shards, nodes)

            return resource

        def memory(name, attempt, site, shards, nodes):
            if on_gpu and self.planned_memory(name):
                return attempt * self.planned_memory(name)
            # Each node of several reads its own share of the weights.
            return attempt * linear(stage.memory, self.weights_gb(name) / nodes if name else 0)

        def minutes(name, attempt, site, shards, nodes):
            each = linear(stage.minutes, self.weights_gb(name) if name else 0)
            cores = self.cores(name) if on_gpu else 0
            if cores:  # a GPU's minutes and a CPU's hours are the same work
                parameters = self.weights_gb(name) * 1e9 / plan.BYTES[self.models[name]["dtype"]]
                took = plan.compute_seconds(parameters, plan.prompts_of(stage), shards, cores)
                each += math.ceil(3 * took / 60)
            most = 60 * site["max_hours"]
            return min(attempt * (tasks if stage.long or cores else 1) * each, most)

        def named(key):
            return by(lambda name, attempt, site, shards, nodes: site[key])

        def of_gpus(value: Callable):
            """A resource of jobs on GPUs, by site, shards and nodes; none where nodes have no GPU."""
            return by(
                lambda name, attempt, site, shards, nodes: (
                    value(site, shards, nodes) if site["gpus_per_node"] else None
                )
            )

        def gres(site, shards, nodes):
            kind = f"{site['gpu_model']}:" if site["gpu_model"] else ""
            return f"gpu:{kind}{shards // nodes}"

        asked = {
            "mem_mb": by(memory),
            "runtime": by(minutes),
            "slurm_account": named("account"),
            "slurm_partition": named("gpu_partition" if on_gpu else "cpu_partition"),
            "slurm_extra": named("slurm_extra"),
        }
        if on_gpu:
            asked |= {
                "gpu_jobs": 1,
                "gpus": of_gpus(lambda site, shards, nodes: shards),
                "gres": of_gpus(gres),
                "cpus_per_task": by(
                    lambda name, attempt, site, shards, nodes: (
                        (self.cores(name) or site["cpus_per_gpu"]) * shards // nodes
                    )
                ),
                # One task a node; with `mpi` Slurm starts the shell once and vecsweep calls srun.
                "nodes": of_gpus(lambda site, shards, nodes: nodes),
                "tasks": of_gpus(lambda site, shards, nodes: nodes if nodes > 1 else None),
                "tasks_per_gpu": of_gpus(lambda site, shards, nodes: 0),
                "mpi": of_gpus(lambda site, shards, nodes: "srun" if nodes > 1 else None),
            }
        return asked


def linear(numbers: tuple[int, int, int], gigabytes: float) -> int:
    """(base, times the weights in GB, at most) at a size of the weights."""
    base, slope, most = numbers
    return math.ceil(min(base + slope * gigabytes, most))
