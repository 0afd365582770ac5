"""The grid of a config: which cells each stage has, and what each job reads, writes and is told."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from vecsweep import Problem, nearest, tasks
from vecsweep.engine import folders
from vecsweep.files import PACKAGE, file_crc32, read_json, write_json
from vecsweep.layout import (
    FIGURES,
    FIRST_LOOK,
    PAGE,
    ROWS,
    STAGES,
    SUMMARY,
    Cell,
    Input,
    Stage,
    other_domains,
    other_models,
    rivals,
)
from vecsweep.tasks import chat
from vecsweep.tasks.formats import locate
from vecsweep.tasks.splits import split_rows

Groups = dict[str, dict[str, list[list[str]]]]  # model -> stage -> tasks of a job


FEWEST_TUNED = 10  # train pairs of a tuned lens: fewer could not both teach and choose
MOST_THREADS = 4  # of a job: with more, small matrices only wait for each other
# This process's run: which tasks a job takes together, by model and stage.
GROUPS: Groups = {}


class Sweep:
    """The grid of a checked config: its cells, and what each job reads, writes and is told.

    `results` is the folder of the results. Nothing is written.
    """

    def __init__(self, config: dict, results: str | Path = "results"):
        self.config, self.results = config, str(results)
        self.models, self.tasks = list(config["models"]), list(config["tasks"])
        self._found: dict[tuple[str, str], list[str] | None] = {}

    @cached_property
    def loaded(self) -> dict[str, tasks.Task]:
        """Every task of the grid, read from its file; Problem at the first mistake."""
        found = {name: self.load_task(name) for name in self.tasks}
        number = self.config.get("prompts", {}).get("demonstrations", 0)
        tasks.check_grid(found, number, packaged())
        self._check_tuned(found)
        return found

    def _check_tuned(self, loaded):
        """Problem if the tasks of the tuned lens cannot have as many train pairs as it needs."""
        some = self.listed("tuned.tasks") if "tuned" in self.config else []
        pairs = 0
        for name in some:
            most, seed = (
                self._setting(f"prompts.{key}", Cell(task=name)) for key in ("max_prompts", "seed")
            )
            found = split_rows(loaded[name], seed).count("train")
            pairs += min(found, most) if most else found
        if some and pairs < FEWEST_TUNED:
            raise Problem(
                f"config, tuned > tasks: {', '.join(some)} have at most {pairs} train pairs, "
                f"{FEWEST_TUNED} are needed; name more tasks there, or raise max_prompts"
            )

    def task_file(self, task: str) -> str:
        """A task's file, relative to this folder where it is the packaged one."""
        own = self.config["tasks"][task].get("file")
        return str(locate(own).file) if own else os.path.relpath(PACKAGE / "tasks" / f"{task}.yaml")

    def load_task(self, task: str) -> tasks.Task:
        """A task of the grid, read from its file, or a section of one."""
        own, ready = self.config["tasks"][task].get("file"), self.task_file(task)
        if not own and task not in packaged():
            raise Problem(
                f"config, tasks > {task}: no packaged task has that name{nearest(task, packaged())} "
                f"({ready}: No such file); write {task}: {{file: path/to/yours.yaml}}"
            )
        return tasks.load(own or ready, task)

    def tasks_of(self, stage: Stage) -> list[str]:
        """The tasks that a stage has jobs for, in the config's order."""
        if "task" not in stage.parts:
            return [""]
        tasks = self.listed(stage.tasks)
        if stage.name == "ovectors":  # a rival may be a task that is not injected itself
            tasks = tasks + [name for task in tasks for name in rivals(self, task)]
        return [task for task in self.tasks if task in tasks]

    def listed(self, key: str) -> list[str]:
        """The tasks that a config key lists, or any key of a section; null means all.

        Contenders stand beside o-vectors: of all tasks those that these are injected for.
        """
        if key == "tasks":
            return self.tasks
        section, _, name = key.partition(".")
        if not name:
            found = {task for one in self.config[key] for task in self.listed(f"{key}.{one}")}
            return [task for task in self.tasks if task in found]
        names = self.config[section][name]
        if names is None and section == "contenders":
            return self.listed("interventions.tasks")
        return [task for task in self.tasks if names is None or task in names]

    def blocks(self, model: str) -> list[str]:
        """The first-last layers that one job takes, e.g. ["0-11", "12-17"]."""
        return blocks(*self._cut(model))

    def series(self, model: str) -> str:
        """The entry of the config that a model is a revision of, or is itself."""
        return self.config["models"][model]["series"]

    def _cut(self, model):
        return [self.config["models"][model][key] for key in ("layers", "layers_per_job")]

    def cells(self, stage: Stage, model: str | None = None) -> list[Cell]:
        """The cells of a stage, of one model or of all."""
        if not stage.parts:
            return [Cell()]
        if not self.listed(stage.tasks):
            return []
        wanted = [
            name
            for name in self.models
            if stage.name != "preshard" or self.config["models"][name]["preshard"]
        ]
        return [
            Cell(name, task, layers)
            for name in wanted
            if model in (None, name)
            for task in self.tasks_of(stage)
            for layers in (self.blocks(name) if "layers" in stage.parts else [""])
        ]

    def jobs(self) -> Iterator[tuple[Stage, Cell]]:
        """Every cell of the grid, stage by stage."""
        for stage in ROWS:
            for cell in self.cells(stage):
                yield stage, cell

    def outputs(self, stage: Stage, cell: Cell) -> dict[str, str]:
        """Option -> path of what a job writes."""
        return stage.paths(cell, self.results)

    def inputs(self, stage: Stage, cell: Cell) -> dict[str, list[str]]:
        """Option -> paths of what a job reads, its settings first.

        An optional input only if the job is to run anyway: it is no reason to.
        """
        found = self._needed(stage, cell)
        for option, what in stage.inputs.items():
            if what.optional and self.config["models"][cell.model][what.optional]:
                if (stage.name, cell) in self.outdated:
                    found[option] = self._results(what, cell)
        return found

    def _needed(self, stage, cell):
        found = {"settings": [self.settings_file(stage, cell)]}
        if stage.reads_task:
            found["task"] = [self.task_file(cell.task)]
        return found | {
            option: self._results(what, cell)
            for option, what in stage.inputs.items()
            if not what.optional
        }

    def _results(self, what, cell):
        stage = STAGES[what.stage]
        return [self.outputs(stage, source)[what.output] for source in self.sources(what, cell)]

    def sources(self, what: Input, cell: Cell) -> list[Cell]:
        """The cells of another stage that an input of this cell comes from."""
        stage = STAGES[what.stage]
        if not cell.model:
            return self.cells(stage)
        if "task" not in stage.parts:
            models = what.models(self, cell.model) if what.models else [cell.model]
            return [Cell(name) for name in models]
        names = what.tasks(self, cell.task) if what.tasks else [cell.task]
        layers = [""]
        if "layers" in stage.parts:
            layers = [cell.layers] if cell.layers else self.blocks(cell.model)
        return [Cell(cell.model, name, block) for name in names for block in layers]

    def data(self, stage: Stage, cell: Cell) -> list[str]:
        """Files that a job reads through another one: the rows of a task."""
        return [self.loaded[cell.task].data] if stage.reads_task else []

    def settings_file(self, stage: Stage, cell: Cell) -> str:
        """Where a cell's settings are noted: all blocks of a task share them."""
        parts = [stage.name, *(part for part in cell[:2] if part)]
        return f"{self.results}/settings/{'/'.join(parts)}.json"

    def settings(self, stage: Stage, cell: Cell) -> dict:
        """What changes a cell's result, and nothing else: the stage's version, its config keys.

        Keys are named by their last word. The summary's are the grid too: each model's number of
        layers, and of layers in a block.
        """
        found = {"stage": stage.name, "version": stage.version}
        found |= {part: value for part, value in zip(("model", "task"), cell) if value}
        for key in stage.keys:
            found[key.split(".")[-1]] = self._setting(key, cell)
        if stage is SUMMARY:
            found["grid"] = {model: self._cut(model) for model in sorted(self.models)}
            found["series"] = {
                model: [self.series(model), self.config["models"][model]["step"]]
                for model in sorted(self.models)
            }
            found["tasks"] = {
                "all": self.tasks,
                "injected": self.listed("interventions.tasks"),
                "contended": self.listed("contenders"),
                "by_heads": self.listed("contenders.function_vectors"),
                "ablated": self.listed("ablations.tasks"),
                "swapped": self.listed("swaps.tasks"),
                "patched": self.listed("patching.tasks"),
                "related": self.listed("relational.tasks"),
                "tuned": self.listed("tuned.tasks"),
            }
        return found

    def _setting(self, key, cell):
        section, name = key.split(".")
        if key == "ablations.twins" or section == "contenders":
            return cell.task in self.listed(key)
        if key == "interventions.rivals":
            return rivals(self, cell.task)
        if key == "tasks.elsewhere":
            return other_domains(self, cell.task)
        if key == "tuned.tasks":
            return self.listed(key)
        if key == "prompts.common":  # the models, so that one more runs the prompts again
            return sorted(other_models(self, cell.model))
        if key == "tasks.content":
            return self._once(key, cell.task, self._task_content)
        if key == "models.content":
            return self._once(key, cell.model, self._model_content)
        if key == "models.chat":
            return chat.template_of(self.config["models"][cell.model])
        if section == "models":
            return self.config["models"][cell.model].get(name)
        if section == "tasks":
            return self.config["tasks"][cell.task].get(name)
        if section == "prompts" and cell.task:
            return self.config["tasks"][cell.task].get(name, self.config["prompts"][name])
        return self.config[section][name]

    def _once(self, key, name, find):
        """What is read from files, once for all cells."""
        if (key, name) not in self._found:
            self._found[key, name] = find(name)
        return self._found[key, name]

    def _task_content(self, task):
        """What tells a task's files from others': an older one may take a file's place."""
        return [file_crc32(path) for path in (self.task_file(task), self.loaded[task].data)]

    def _model_content(self, model):
        """What tells a local model's files from others'; as noted where they are gone meanwhile."""
        if self.config["models"][model]["source"] != "local":
            return None
        try:
            return folders.fingerprint(Path(self.config["models"][model]["path"]).expanduser())
        except OSError:
            noted = read_note(self.settings_file(STAGES["models"], Cell(model)))
            return (noted or {}).get("content")

    def all_settings(self) -> dict[str, dict]:
        """Settings file -> settings, of every cell, the summary and the page."""
        return {
            self.settings_file(stage, cell): self.settings(stage, cell)
            for stage in (*ROWS, SUMMARY, PAGE)
            for cell in self.cells(stage)
        }

    def command(self, stage: Stage, cell: Cell) -> list[str]:
        """The words behind `vecsweep` that make a cell's results."""
        # Not from their file: it might be another one's by the time that the job starts.
        words = [stage.name, "--settings", json.dumps(self.settings(stage, cell), sort_keys=True)]
        named = self.inputs(stage, cell) | self.outputs(stage, cell)
        del named["settings"]
        for option, paths in named.items():
            paths = [paths] if isinstance(paths, str) else paths
            words += [f"--{option}", *paths] if paths else []
        if cell.layers:
            first, last = cell.layers.split("-")
            words += ["--first", first, "--last", last]
        if stage.runs_model:
            model = self.config["models"][cell.model]
            for option in ("batch_tokens", "shards", "engine"):
                words += [f"--{option.replace('_', '-')}", str(model[option])]
            words += ["--offload"] * model["offload"]
        return words

    @cached_property
    def outdated(self) -> set[tuple[str, Cell]]:
        """(stage, cell) of every result that is missing, older than what it is made of, or about to be.

        As Snakemake will see it, or more: it compares small files by content too. States that were
        let go are outdated only where what reads them is.
        """
        readers = self._readers_of_gone()
        wanted: set[tuple[str, Cell]] = set()  # states to make again for one of their readers
        while True:
            found = self._outdated_but(readers, wanted)
            more = {state for state, of in readers.items() if not found.isdisjoint(of)} - found
            if not more:
                return found
            wanted |= more

    def _outdated_but(self, readers, wanted):
        found = set(wanted)
        for stage, cell in (*self.jobs(), (SUMMARY, Cell())):
            needed = [path for paths in self._needed(stage, cell).values() for path in paths]
            changed = read_note(needed[0]) != self.settings(stage, cell)
            before = (
                (what.stage, source) in found
                for what in stage.inputs.values()
                if not what.optional
                for source in self.sources(what, cell)
            )
            # Those of what is gone are as old as what was made of it.
            made = readers.get((stage.name, cell)) or [(stage.name, cell)]
            written = [p for name, each in made for p in self.outputs(STAGES[name], each).values()]
            if changed or any(before) or older(written, needed + self.data(stage, cell)):
                found.add((stage.name, cell))
        return found

    def is_kept(self, stage: Stage) -> bool:
        """Whether a stage's results stay when all that reads them is made."""
        return stage.name != "states" or self.config["keep"]["states"]

    def _readers_of_gone(self) -> dict[tuple[str, Cell], list[tuple[str, Cell]]]:
        """Results that are let go and not there -> the results that are made of them."""
        stage = STAGES["states"]
        if self.is_kept(stage):
            return {}
        found: dict[tuple[str, Cell], list[tuple[str, Cell]]] = {
            (stage.name, cell): []
            for cell in self.cells(stage)
            if not all(map(os.path.exists, self.outputs(stage, cell).values()))
        }
        for reader in ROWS:
            for what in reader.inputs.values():
                for cell in self.cells(reader) if what.stage == stage.name else []:
                    for source in self.sources(what, cell):
                        if (state := (stage.name, source)) in found:
                            found[state].append((reader.name, cell))
        return found

    def let_go(self) -> set[tuple[str, Cell]]:
        """(stage, cell) of results that are gone since all that reads them is made."""
        return {state for state in self._readers_of_gone() if state not in self.outdated}

    def waiting_models(self) -> list[str]:
        """The models that stage `models` is to bring here, or to bring anew."""
        return [name for name in self.models if ("models", Cell(name)) in self.outdated]

    def groups(self, cores: int, fits: Callable[[Stage, str], int] | None = None) -> Groups:
        """Model -> stage -> lists of tasks that one job takes together, by `tasks_per_job`.

        `auto` cuts a stage's tasks into as many jobs, over all models, as keep `cores` busy; on a
        cluster `fits` gives how many tasks of a stage and model one job takes. Only tasks that are
        to run are grouped: what is finished is in no group, and does not run again. On one machine
        the first model's first task goes ahead alone, as a list of one, through the stages behind a
        first look.
        """
        outdated = {(stage, cell.model, cell.task) for stage, cell in self.outdated}
        found: Groups = {model: {} for model in self.models}
        for stage in ROWS:
            if "task" not in stage.parts:
                continue
            waiting = {
                model: [
                    task for task in self.tasks_of(stage) if (stage.name, model, task) in outdated
                ]
                for model in self.models
            }
            busy = max(1, sum(map(bool, waiting.values())))
            for model, names in waiting.items():
                size = self.config["models"][model]["tasks_per_job"]
                if size == "auto" and fits:
                    size = fits(stage, model)
                # Long ones twice as fine: no core waits for another's last one.
                jobs = cores * (2 if stage.long and cores > 1 else 1)
                count = jobs / busy if size == "auto" else len(names) / size
                ahead = names[:1] if self._goes_ahead(stage, model, names, fits) else []
                chunks = parted(names[len(ahead) :], math.ceil(count))
                found[model][stage.name] = [chunk for chunk in chunks if len(chunk) > 1]
                found[model][stage.name] += [ahead] * bool(ahead)
        return found

    def threads(self, cores: int, groups: Groups) -> dict[str, int]:
        """Stage -> threads of each of its jobs on one machine, where they are fewer than the cores.

        Only of stages that multiply matrices, and up to MOST_THREADS.
        """
        cells = Counter(name for name, _ in self.outdated)
        found = {}
        for stage in ROWS:
            jobs = cells[stage.name]
            for model, by_stage in groups.items():
                blocks = len(self.blocks(model)) if "layers" in stage.parts else 1
                jobs -= sum(blocks * (len(tasks) - 1) for tasks in by_stage.get(stage.name, []))
            if jobs > 0 and (stage.runs_model or stage.name == "lens"):
                found[stage.name] = max(1, min(cores // jobs, MOST_THREADS))
        return found

    def _goes_ahead(self, stage: Stage, model: str, names: list[str], fits) -> bool:
        """Whether the first of a stage's tasks that are to run has a job of its own, before others."""
        first = model == next(iter(self.models)) and names[:1] == [next(iter(self.config["tasks"]))]
        whole = fits is None and self.config["models"][model]["tasks_per_job"] == "auto"
        return first and whole and len(names) > 2 and stage.name in FIRST_LOOK

    def drawn(self, figures: dict[str, dict], cores: int) -> list[list[str]]:
        """Lists of figures that one job draws together, of those that are to be drawn.

        `figures` are the settings of all, by name. A start takes as long as drawing one or two:
        six or more share it.
        """
        new = (SUMMARY.name, Cell()) in self.outdated
        database = self.outputs(SUMMARY, Cell())["database"]
        late = []
        for name, settings in figures.items():
            note = self.settings_file(FIGURES, Cell(name))
            pictures = [f"{self.results}/figures/{name}.{kind}" for kind in ("svg", "png")]
            if new or read_note(note) != settings or older(pictures, [database, note]):
                late.append(name)
        return parted(late, min(cores, math.ceil(len(late) / 6)))


def packaged() -> list[str]:
    """The names of the tasks that come with vecsweep."""
    return sorted(path.stem for path in (PACKAGE / "tasks").glob("*.yaml"))


def parted(names: list[str], count: int) -> list[list[str]]:
    """Names in `count` runs of nearly equal length, in their order; fewer if there are fewer."""
    count = min(count, len(names))
    ends = [math.ceil(len(names) * i / count) for i in range(count + 1)] if count else []
    return [names[first:last] for first, last in zip(ends, ends[1:])]


def blocks(layers: int, size: int) -> list[str]:
    """The first-last layers of blocks of `size` layers, e.g. ["0-11", "12-17"]."""
    return [f"{first}-{min(first + size, layers) - 1}" for first in range(0, layers, size)]


class Noted(NamedTuple):
    """A settings file as it was before `note` wrote it, None if it was not, and the new one's inode."""

    before: tuple[bytes, int] | None
    inode: int


def note(files: dict[str, dict]) -> dict[Path, Noted]:
    """Write settings files, as JSON with keys in order; those that say the same are left alone.

    They are inputs of the jobs: a job runs again when its own settings changed. Gives what was
    there before in each file that is written, and its time, for `restore`.
    """
    found: dict[Path, Noted] = {}
    for path, settings in files.items():
        if read_note(path) != settings:
            file = Path(path).absolute()  # Snakemake leaves its folder before it ends
            before = (file.read_bytes(), file.stat().st_mtime_ns) if file.exists() else None
            write_json(dict(sorted(settings.items())), path)
            found[file] = Noted(before, file.stat().st_ino)
    return found


def locks(folder: Path) -> set[tuple[str, int]]:
    """The locks that runs hold in Snakemake's folder of them, each with its time."""
    found = set()
    for path in folder.glob("*.lock"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def restore(noted: dict[Path, Noted]) -> None:
    """Undo what `note` wrote, but where another has written since: a dry run leaves no trace."""
    for path, (before, inode) in noted.items():
        with suppress(FileNotFoundError):
            if path.stat().st_ino != inode:
                continue
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before[0])
                os.utime(path, ns=(before[1], before[1]))


def read_note(path: str | Path) -> dict | None:
    """Settings as they were noted; None if they were not, or cannot be read."""
    try:
        return read_json(path)
    except Problem:
        return None


def older(outputs: list[str], inputs: list[str]) -> bool:
    """Whether an output is missing or older than one of the inputs that are there."""
    try:
        oldest = min(os.stat(path).st_mtime for path in outputs)
    except OSError:
        return True
    return any(os.path.exists(path) and os.stat(path).st_mtime > oldest for path in inputs)


def block_files(results: Path, stage: str, model: str, task: str) -> list[Path]:
    """The files of a cell in blocks of layers, in order, as the last sweep cut it.

    Those of another cut lie beside them until `prune`, and may be of an older sweep.
    """
    folder = results / stage / model / task
    noted = read_note(results / "settings" / f"{SUMMARY.name}.json") or {}
    cut = noted.get("grid", {}).get(model)
    paths = [folder / f"{block}.parquet" for block in blocks(*cut)] if cut else []
    return [path for path in paths if path.exists()] or sorted(folder.glob("*.parquet"))


def one_of(names) -> str:
    """A regular expression: one of these names, or none if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"
