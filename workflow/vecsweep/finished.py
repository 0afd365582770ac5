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

from vecsweep import Problem
from vecsweep.files import file_crc32, header_crc32, provenance
from vecsweep.layout import STAGES

WHOLE = ".whole"


def is_long(args) -> bool:
    """Whether a command is a stage that keeps what it did: a long one of a single output."""
    stage = STAGES.get(args.command)
    return bool(stage and stage.keeps_parts)


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
    found = [stage.name, stage.version, args.settings, inputs, made_by]
    found += [getattr(args, name, None) for name in how]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _checksum(path: Path) -> str:
    return header_crc32(path) if path.suffix == ".safetensors" else file_crc32(path)


def finish(args, alone: bool) -> None:
    """A task is done; its output, linked, takes the place of its parts unless its job is."""
    folder = folder_of(args.output)
    if not alone:
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        with suppress(OSError):  # a file system without links: it would be made again
            os.link(args.output, folder / f"{key_of(args)}{WHOLE}")
    elif folder.is_dir():
        remove(args.output)


def brought_back(args) -> bool:
    """Whether a task was finished by a job that failed later: then its output is there again."""
    whole = next(folder_of(args.output).glob(f"*{WHOLE}"), None)
    try:
        if whole is None or whole.stem != key_of(args):
            return False
    except Problem:  # an input cannot be read: the stage says so
        return False
    args.output.unlink(missing_ok=True)
    os.link(whole, args.output)
    os.utime(args.output)  # newer than what it is made of
    print(f"{args.output} was finished before a job of several tasks failed", file=sys.stderr)
    return True


def remove(output: Path) -> None:
    """Remove the parts of an output."""
    shutil.rmtree(folder_of(output), ignore_errors=True)
