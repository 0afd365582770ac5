import json
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from vecsweep import STEP_VERSIONS, Problem, config as vecsweep_config, tasks

try:
    config = vecsweep_config.checked(config)
    TASK_FILES = {
        name: settings.get("file", f"{workflow.basedir}/workflow/vecsweep/tasks/{name}.yaml")
        for name, settings in config["tasks"].items()
    }
    # Every task is read before any job starts: a mistake in a table costs no sweep.
    LOADED = {name: tasks.load(path) for name, path in TASK_FILES.items()}
except Problem as problem:
    raise WorkflowError(str(problem)) from None

MODELS = list(config["models"])
TASKS = list(config["tasks"])


def listed(names):
    """The tasks that a config list names; null means all."""
    for name in names or []:
        if name not in TASKS:
            raise WorkflowError(f"config: task '{name}' is in a list, but not under tasks: add it")
    return TASKS if names is None else [task for task in TASKS if task in names]


INJECTED = listed(config["interventions"]["tasks"])
ABLATED = listed(config["ablations"]["tasks"])
TWINS = listed(config["ablations"]["twins"])
SEARCH_SETTINGS = {
    key: config["interventions"][key]
    for key in ("modes", "scales", "position", "end_depth", "dev_prompts", "test_prompts")
} | {"seed": config["prompts"]["seed"]}


wildcard_constraints:
    model="[A-Za-z0-9][A-Za-z0-9._-]*",
    task="[A-Za-z0-9][A-Za-z0-9_-]*",
    first=r"\d+",
    last=r"\d+",


def prompt_settings(wildcards):
    """The settings of one task's prompts: the common ones and the task's own."""
    return json.dumps(config["prompts"] | without(config["tasks"][wildcards.task], "file"))


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


def layer_blocks(model):
    """The first-last layers that one job takes, e.g. ["0-11", "12-17"]."""
    layers, size = (config["models"][model][key] for key in ("layers", "layers_per_job"))
    return [f"{first}-{min(first + size, layers) - 1}" for first in range(0, layers, size)]


def over_layers(pattern):
    """An input function: `pattern` for every layer block of the job's model."""
    return lambda wildcards: expand(
        pattern,
        model=wildcards.model,
        task=wildcards.task,
        layers=layer_blocks(wildcards.model),
    )


def sharding_options(wildcards):
    """How the model of a job is run, loaded from its own files."""
    model = config["models"][wildcards.model]
    options = ("batch_tokens", "shards", "engine")
    words = [f"--{name.replace('_', '-')} {model[name]}" for name in options]
    return " ".join(words + ["--offload"] * model["offload"])


def preshards(wildcards):
    """The folder with the slices of a job's model, if it has one."""
    name = wildcards.model
    return [f"results/preshard/{name}"] if config["models"][name]["preshard"] else []


def engine_options(wildcards):
    """How the model of a job is run."""
    ready = [f"--ranks {folder}" for folder in preshards(wildcards)]
    return " ".join([sharding_options(wildcards), *ready])


def fetching(model):
    """The part of a model's config that says what it is and where its weights come from."""
    return without(
        config["models"][model],
        "batch_tokens",
        "shards",
        "engine",
        "offload",
        "preshard",
        "layers_per_job",
        "tasks_per_job",
    )


def rivals(task):
    """The task whose o-vector is a control for another task's: none if the grid has no such."""
    others = [name for name in config["interventions"]["rivals"] if name in TASKS and name != task]
    return others[:1]


def other_domains(task):
    """The task of the grid that is out-of-domain for another one: none or one."""
    return [name for name in TASKS if name == LOADED[task].out_of_domain.get("task")]


def one_of(names):
    """A wildcard constraint: one of these names, or none if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def groups_file(model):
    return Path(f"results/groups/{model}.json")


def task_groups(model):
    """Stage -> the tasks that each job of a model takes together.

    Groups that were made once stay as they are, so that a task added later makes a group of its
    own and no finished one runs again: onstart notes them down.
    """
    noted = groups_file(model)
    old = json.loads(noted.read_text()) if noted.exists() else {}
    size = config["models"][model]["tasks_per_job"]
    found = {}
    for stage, tasks in LOADING.items():
        before = old.get(stage, [])
        groups = [kept for group in before if (kept := [task for task in group if task in tasks])]
        new = [task for task in tasks if not any(task in group for group in groups)]
        found[stage] = groups + [new[i : i + size] for i in range(0, len(new), size)]
    return found


# The stages that load the model, each with its tasks.
LOADING = {
    "states": TASKS,
    "interventions": INJECTED,
    "selection": INJECTED,
    "ablations": ABLATED,
}
TASK_GROUPS = {
    model: task_groups(model)
    for model, settings in config["models"].items()
    if settings["tasks_per_job"] > 1
}
# A wildcard constraint of these stages' own rules; groups.smk has the rules of other models.
ONE_BY_ONE = one_of(model for model in MODELS if model not in TASK_GROUPS)


onstart:
    for model, groups in TASK_GROUPS.items():
        groups_file(model).parent.mkdir(parents=True, exist_ok=True)
        groups_file(model).write_text(json.dumps(groups))
