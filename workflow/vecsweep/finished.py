"""Where a long stage keeps what it did so far, and what is left of a task that is finished.

The parts of `x.parquet` lie beside it in `.x.parquet.parts/`, which is no output of a job, so that
Snakemake does not remove them with one. They go once the output is there. Only where a job takes
several tasks the finished output stays linked there until all are done: if one fails, Snakemake
removes the outputs of all before it tries the job again.
"""

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from vecsweep import Problem, tasks
from vecsweep.files import file_crc32, header_crc32, provenance
from vecsweep.layout import STAGES

WHOLE = ".whole"


def is_long(args) -> bool:
    """Whether a command is a stage that keeps what it did: a long one."""
    stage = STAGES.get(args.command)
    return bool(stage and stage.long)


def outputs_of(args) -> dict[str, Path]:
    """Option -> path of what a stage writes."""
    return {option: getattr(args, option) for option in STAGES[args.command].outputs}


def table_of(args) -> Path:
    """The output that a command's parts lie beside: the last, which the summary reads."""
    return [*outputs_of(args).values()][-1]


def folder_of(output: Path) -> Path:
    """Where the parts of an output lie."""
    return output.with_name(f".{output.name}.parts")


def key_of(args) -> str:
    """A key of what makes a result: stage and version, settings, inputs, how it runs, packages."""
    stage = STAGES[args.command]
    inputs = {}
    for option, what in stage.inputs.items():
        given = getattr(args, option, None)
        if given and not what.optional:
            paths = given if isinstance(given, list) else [given]
            inputs[option] = [_checksum(path) for path in paths]
    how = ("first", "last", "batch_tokens", "shards", "engine", "offload")
    made_by = {name: text for name, text in provenance().items() if name != "host"}
    task = None
    if stage.reads_task:  # as `load` reads it: its rows may lie in another file
        task = repr(tasks.load(args.settings.get("file") or args.task, args.settings["task"]))
    found = [stage.name, stage.version, args.settings, inputs, task, made_by]
    found += [getattr(args, name, None) for name in how]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _checksum(path: Path) -> str:
    return header_crc32(path) if path.suffix == ".safetensors" else file_crc32(path)


def finish(args, alone: bool) -> None:
    """A task is done; its outputs, linked, take the place of its parts unless its job is."""
    folder = folder_of(table_of(args))
    if not alone:
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        with suppress(OSError):  # a file system without links: it would be made again
            for option, path in outputs_of(args).items():
                os.link(path, folder / f"{key_of(args)}.{option}{WHOLE}")
    elif folder.is_dir():
        remove(table_of(args))


def brought_back(args) -> bool:
    """Whether a task was finished by a job that failed later: then its outputs are there again."""
    folder, outputs = folder_of(table_of(args)), outputs_of(args)
    if not any(folder.glob(f"*{WHOLE}")):
        return False
    try:
        key = key_of(args)
    except Problem:  # an input cannot be read: the stage says so
        return False
    wholes = {path: folder / f"{key}.{option}{WHOLE}" for option, path in outputs.items()}
    if not all(whole.exists() for whole in wholes.values()):
        return False
    for path, whole in wholes.items():
        path.unlink(missing_ok=True)
        os.link(whole, path)
        os.utime(path)  # newer than what it is made of
        print(f"{path} was finished before a job of several tasks failed", file=sys.stderr)
    return True


def remove(output: Path) -> None:
    """Remove the parts beside an output."""
    shutil.rmtree(folder_of(output), ignore_errors=True)
