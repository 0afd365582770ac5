import atexit
import itertools
import json
import os
import re
import shlex
from pathlib import Path

from snakemake import benchmark
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

try:
    import vecsweep
except ModuleNotFoundError:
    raise WorkflowError(
        "the package vecsweep is not installed; clone its repository, and pip install -e the clone"
    ) from None

from vecsweep import Problem, config as vecsweep_config, slurm
from vecsweep.engine import folders
from vecsweep.figures import wanted
from vecsweep.files import PACKAGE, read_json, write_json
from vecsweep.layout import ENDS, FIGURES, PAGE, PRIORITIES, ROWS, SUMMARY, Cell
from vecsweep.sweep import Sweep, locks, note, one_of, restore
from vecsweep.tasks import chat
from vecsweep.resources import Requests, read_site

# For its benchmark files Snakemake looks through a job's memory, at first twice a second: a look takes
# 25 ms, in which the job waits.
benchmark.BENCHMARK_INTERVAL_SHORT = 2

IN_MODULE = not workflow.modifier.is_main_snakefile()
# The checkout whose Snakefile runs: the one that is installed may be another. A module's Snakefile
# may have been fetched without the rest.
BASE = Path(workflow.basedir)
HERE = PACKAGE.parent.parent if IN_MODULE else BASE.parent if BASE.name == "workflow" else BASE
# As a module of another workflow: where its `prefix` or `replace_prefix` puts results.
RESULTS = workflow.modifier.path_modifier.replace_prefix("results/").rstrip("/")

CODE_HERE = HERE / "workflow" / "vecsweep"
if CODE_HERE.is_dir() and not CODE_HERE.samefile(PACKAGE):
    raise WorkflowError(
        f"the package of {PACKAGE.parent.parent} was loaded with the Snakefile of {HERE}; "
        "start from that folder, or without --logger vecsweep"
    )


def declared(path):
    """A path as rules name it: Snakemake itself puts a module's prefix before relative ones."""
    if RESULTS == "results":
        return path
    front = f"{RESULTS}/"
    inside = path.startswith(front)
    return f"results/{path.removeprefix(front)}" if inside else os.path.abspath(path)


# Who says how many jobs may be in a queue has a cluster.
ON_CLUSTER = workflow.resource_settings.nodes is not None

try:
    for file in workflow.configfiles:
        vecsweep_config.read(file)  # a key that stands twice is lost in what Snakemake read
    config = vecsweep_config.checked(config)
    SWEEP = Sweep(config, RESULTS)
    # Every task is read before any job starts: a mistake in a table costs no sweep.
    SWEEP.loaded
    if workflow.is_main_process:
        folders.check_all(config["models"], SWEEP.waiting_models())
        chat.check_all(config["models"], SWEEP.waiting_models())
    SITE = read_site(HERE / "workflow" / "profiles" / "slurm")
    REQUESTS = Requests(config["models"], SITE)
    if ON_CLUSTER and workflow.is_main_process:
        REQUESTS.check_spread()
except Problem as problem:
    raise WorkflowError(str(problem)) from None

MODULES = " ".join(map(shlex.quote, SITE["modules"]))
# Jobs find the package also in a conda environment or container that does not have it.
CODE = shlex.quote(str(HERE / "workflow"))
VECSWEEP = (
    f"export PYTHONPATH={CODE}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    + (f'[ -z "$SLURM_JOB_ID" ] || module load {MODULES}; ' if MODULES else "")
    + "python -m vecsweep"
)

if workflow.is_main_process:
    slurm.mend()
    for line in REQUESTS.small_gpus():
        logger.warning(line)


wildcard_constraints:
    model="[A-Za-z0-9][A-Za-z0-9._@-]*",
    task="[A-Za-z0-9][A-Za-z0-9_-]*",
    layers=r"\d+-\d+",


def command(stage, cells):
    """What a job runs: the commands of its cells, in one process that loads a model once."""
    return " --and ".join(shlex.join(SWEEP.command(stage, cell)) for cell in cells)


def reads(stage, cells):
    """The files that a job reads."""
    found = {}
    for cell in cells:
        for paths in (*SWEEP.inputs(stage, cell).values(), SWEEP.data(stage, cell)):
            found |= dict.fromkeys(map(declared, paths))
    return list(found)


def made(stage, cell):
    """Option -> file that a cell's job writes."""
    return {option: declared(path) for option, path in SWEEP.outputs(stage, cell).items()}


def written(stage):
    """Option -> pattern of what a stage's jobs write."""
    patterns = made(stage, Cell(*(f"{{{part}}}" for part in Cell._fields)))
    return {
        option: directory(path) if stage.outputs[option].endswith("/") else kept(stage, path)
        for option, path in patterns.items()
    }


def kept(stage, path):
    """An output; Snakemake removes one that the config does not keep, after its last reader."""
    return path if SWEEP.is_kept(stage) else temp(path)


# What no other stage reads: rule all asks for it.
UNREAD = [path for s in ENDS for cell in SWEEP.cells(s) for path in made(s, cell).values()]
DATABASE = made(SUMMARY, Cell())["database"]

# Which tasks a job takes together. Jobs on other nodes read this file anew while results come in:
# the groups are noted when a run starts.
NOTED = Path(RESULTS) / "groups.json"
CORES = workflow.resource_settings.cores or 1
if not workflow.is_main_process and NOTED.exists():
    GROUPS = read_json(NOTED)
else:
    GROUPS = SWEEP.groups(CORES, REQUESTS.together if ON_CLUSTER else None)
vecsweep.sweep.GROUPS.update(GROUPS)  # what shows the run's progress counts by them

# Few jobs take more threads each.
ALONE = not ON_CLUSTER and workflow.is_main_process
THREADS = SWEEP.threads(CORES, GROUPS) if ALONE else {}


def threads(stage, model):
    """Threads of a job; on a cluster, and inside its jobs, what the site says."""
    return THREADS.get(stage.name, 1) if ALONE else REQUESTS.threads(stage, model)


def alone(stage):
    """A constraint on a stage's model: its cells that are in no group have a job each."""
    grouped = [
        f"{re.escape(model)}/(?:{one_of(task for group in by_stage[stage.name] for task in group)})"
        for model, by_stage in GROUPS.items()
        if by_stage.get(stage.name)
    ]
    return f"(?!(?:{'|'.join(grouped)})[./])" * bool(grouped) + f"(?:{one_of(config['models'])})"


DRAWN = wanted(series=len({SWEEP.series(name) for name in SWEEP.models}) < len(SWEEP.models))
FIGURE_SETTINGS = {
    name: {"name": name, "version": figure.version} for name, figure in DRAWN.items()
}
FIGURE_GROUPS = SWEEP.drawn(FIGURE_SETTINGS, CORES)

# Settings are noted as files, which are inputs of the jobs. What does not start jobs, as a dry run,
# leaves them as they were.
if workflow.is_main_process:
    figures = {
        SWEEP.settings_file(FIGURES, Cell(name)): settings
        for name, settings in FIGURE_SETTINGS.items()
    }
    SETTINGS = SWEEP.all_settings() | figures | ({str(NOTED): GROUPS} if IN_MODULE else {})
    LOCKS = Path(".snakemake/locks").absolute()
    try:
        HELD, BEFORE = locks(LOCKS), note(SETTINGS)
    except Problem as problem:
        raise WorkflowError(str(problem)) from None

    def undo():
        # Not under a run that began meanwhile, which may count on these. A module's `onstart` is not
        # called.
        if locks(LOCKS) <= HELD and not (IN_MODULE and workflow.scheduler and not workflow.dryrun):
            restore(BEFORE)

    atexit.register(undo)


onstart:
    # Again: a dry run that ended just now has undone its own.
    note(SETTINGS)
    BEFORE.clear()
    write_json(GROUPS, NOTED)
