"""What Snakemake takes to lay out a large sweep: time, memory, jobs, and a rerun of what is finished.

Makes a config and stand-ins for all results in FOLDER, runs Snakemake dry on them before and after,
prints a line for each; removes what it made. No job runs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from vecsweep import Problem, config
from vecsweep.figures import FIGURES as DRAWN
from vecsweep.files import PACKAGE
from vecsweep.layout import FIGURES, PAGE, SUMMARY, Cell
from vecsweep.sweep import Sweep, note
from vecsweep.terminal import at_least

ROOT = PACKAGE.parent.parent
HUB = {"source": "hub", "revision": "0" * 40, "dtype": "float32"}
TASK = {"kind": "one-to-one", "templates": ["{argument} is {answer}."], "separator": "\n"}


def arguments(parser):
    parser.add_argument("folder", type=Path, help="a new folder")
    counts = {"models": 50, "tasks": 50, "layers": 48, "layers-per-job": 12}
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=f"[{default}]")
    parser.add_argument(
        "--tasks-per-job", type=number, default="auto", help="a number, or [auto], on a cluster"
    )


def number(text: str):
    """`auto`, or how many."""
    return text if text == "auto" else at_least(1)(text)


def made_up(args) -> dict:
    """A config of that size, and its tasks' files in the folder."""
    model = HUB | {"layers": args.layers, "layers_per_job": args.layers_per_job}
    size = args.tasks_per_job
    model["tasks_per_job"] = size
    args.folder.mkdir(parents=True)
    grid: dict = {"models": {}, "tasks": {}}
    for number in range(args.models):
        grid["models"][f"model{number}"] = model | {"id": f"made/up{number}"}
    for number in range(args.tasks):
        file = args.folder / f"task{number}.yaml"
        task = TASK | {"title": f"Task {number}", "data": file.with_suffix(".csv").name}
        file.write_text(yaml.safe_dump(task))
        rows = "".join(f"a{row},b{row}\n" for row in range(10))
        file.with_suffix(".csv").write_text(f"argument,answer\n{rows}")
        grid["tasks"][f"task{number}"] = {"file": str(file.resolve())}
    return grid


def stand_ins(sweep: Sweep) -> int:
    """An empty file, or a folder, for every result, older ones first; their number."""
    figures = {
        sweep.settings_file(FIGURES, Cell(name)): {"name": name, "version": figure.version}
        for name, figure in DRAWN.items()
    }
    note(sweep.all_settings() | figures)
    count = 0
    cells = [*sweep.jobs(), (SUMMARY, Cell())]
    cells += [(FIGURES, name) for name in DRAWN] + [(PAGE, Cell())]
    for stage, cell in cells:
        if stage is FIGURES:
            paths = [f"{sweep.results}/figures/{cell}.{kind}" for kind in ("svg", "png")]
        else:
            paths = [*sweep.outputs(stage, cell).values()]
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if path.name == "tables" else path.touch()
            count += 1
    return count


def dry(folder: Path) -> str:
    """What a dry run takes, in words: jobs, wall and CPU seconds, peak memory."""
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--cores", "all"]
    command += ["--jobs", "100", "-s", str(ROOT / "Snakefile"), "--configfile", "run.yaml"]
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, busy = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        out.seek(0)
        said = out.read()
    if process.returncode:
        raise Problem(f"snakemake ended with {process.returncode}: {said[-2000:]}")
    jobs = re.search(r"^total +(\d+)", said, re.MULTILINE)
    count = int(jobs[1]) if jobs else 0
    if not jobs and "Nothing to be done" not in said:
        raise Problem(f"snakemake did not say how many jobs there are: {said[-2000:]}")
    memory = usage.ru_maxrss * 1024 / 1e6
    return f"{count:,} jobs, {seconds:.0f} s, {busy:.0f} CPU s, peak {memory:.0f} MB"


def run(args):
    """Print what a first run and one after all is finished take."""
    if args.folder.exists():
        raise Problem(f"{args.folder} is there already; name a new folder")
    try:
        grid = made_up(args)
        (args.folder / "run.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
        sweep = Sweep(config.checked(grid), args.folder / "results")
        print(f"{args.models} models x {args.tasks} tasks x {len(sweep.blocks('model0'))} blocks")
        print(f"nothing there yet: {dry(args.folder)}", flush=True)
        print(f"{stand_ins(sweep):,} results there: {dry(args.folder)}", flush=True)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
