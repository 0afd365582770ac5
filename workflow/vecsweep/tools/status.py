"""How far the sweep is: what is done, running or failed, of each model and task.

Read from results and logs, and from Slurm's queue where there is one; what failed, with its log;
with --jobs what jobs of each rule took, so that you can size your requests. Nothing is written.
"""

import csv
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from statistics import mean

from vecsweep import config, terminal
from vecsweep.engine import gpu
from vecsweep.files import read_json
from vecsweep.layout import STAGES
from vecsweep.sweep import Sweep


def arguments(parser):
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    parser.add_argument("--jobs", action="store_true", help="what each rule's jobs took")


def run(args):
    """Print the state of the sweep."""
    sweep = Sweep(config.load(args.configfile), args.results)
    cells = state_of_cells(sweep, args.logs, queued_jobs(Path.cwd()))
    used = benchmarks(args.results / "benchmarks", args.logs)
    print_cells(cells)
    print_progress(cells, used)
    if args.jobs:
        print_benchmarks(used)


def queued_jobs(folder: Path) -> dict[str, str]:
    """Slurm's state of this folder's jobs, by the comment that names rule and wildcards."""
    if not shutil.which("squeue"):
        return {}
    command = ["squeue", "-h", "--me", "-o", "%k|%T|%Z"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    here = folder.resolve()
    return {comment: state for comment, state, where in rows if Path(where).resolve() == here}


def state_of_cells(sweep: Sweep, logs: Path, queue: dict) -> list[dict]:
    """A row for each job: stage, model, task, layers, state, log.

    States: done, outdated (made by other settings, or of what is), running, waiting (in Slurm's
    queue), failed, missing. A log without a result is of a running job while Snakemake holds its
    lock and the log does not end in an error.
    """
    locked = any(Path(".snakemake/locks").glob("*"))
    noted = Path(sweep.results) / "groups.json"
    groups = read_json(noted) if noted.exists() else {}
    rows, gone = [], sweep.let_go()
    for stage, cell in sweep.jobs():
        # A job that takes several tasks bears the name of the first.
        together = groups.get(cell.model, {}).get(stage.name, [])
        first = next((group[0] for group in together if cell.task in group), cell.task)
        parts = [part for part in cell._replace(task=first) if part]
        log = Path(logs, stage.name, *parts[:-1], f"{parts[-1]}.log")
        words = "_".join(parts)
        slurm = queue.get(f"rule_{stage.name}_wildcards_{words}")
        slurm = slurm or queue.get(f"rule_{stage.name}_{words}".replace("-", "_"))
        if slurm:
            state = "waiting" if slurm == "PENDING" else "running"
        elif (stage.name, cell) in gone or all(
            Path(path).exists() for path in sweep.outputs(stage, cell).values()
        ):
            state = "outdated" if (stage.name, cell) in sweep.outdated else "done"
        elif not log.exists():
            state = "missing"
        else:
            ended = any(terminal.is_error(line, stage.name) for line in terminal.tail(log)[-1:])
            state = "running" if locked and not ended else "failed"
        rows.append({"stage": stage.name, **cell._asdict(), "state": state, "log": log})
    return rows


def print_cells(rows: list[dict]) -> None:
    """A line for each model and task, a column for each stage."""
    cells = {}
    for row in rows:
        cells.setdefault((row["model"], row["task"]), {}).setdefault(row["stage"], []).append(
            row["state"]
        )
    stages = [stage for stage in STAGES if any(stage in cell for cell in cells.values())]
    table = [["model", "task", *stages]]
    for (model, task), found in cells.items():
        table.append([model, task, *(word_for(found.get(stage)) for stage in stages)])
    print_table(table)


def word_for(states: list[str] | None) -> str:
    """One word for the jobs of a cell: failed before running, outdated before missing."""
    if not states:
        return ""
    done = states.count("done")
    for word in ("failed", "running", "waiting", "outdated"):
        if word in states:
            return word if len(states) == 1 else f"{word} {done}/{len(states)}"
    if done == len(states):
        return "done"
    return f"{done}/{len(states)}" if done else "."


def print_progress(rows: list[dict], used: dict) -> None:
    """Jobs done of all, for each model and together, with a bar; work left; what failed."""
    states = ("done", "outdated", "running", "waiting", "failed")
    table = [["model", "", "jobs", *states]]
    for model in [*dict.fromkeys(row["model"] for row in rows), ""]:
        mine = [row["state"] for row in rows if model in ("", row["model"])]
        counts = [mine.count(state) for state in states]
        drawn = terminal.bar(counts[0] / len(mine))
        table.append([model or "all", drawn, len(mine), *counts])
    print()
    print_table(table)
    left = [row for row in rows if row["state"] != "done"]
    each = seconds_each(rows, used)
    known = [row for row in left if row["stage"] in each]
    seconds = sum(each[row["stage"]] for row in known)
    running = sum(row["state"] == "running" for row in rows)
    if left:
        guess = f"; by what jobs took so far {terminal.rough(seconds)} of work" if known else ""
        if running and known:
            guess += f", {terminal.rough(seconds / running)} left at {running} at a time"
        unknown = dict.fromkeys(row["stage"] for row in left if row["stage"] not in each)
        more = f", and what {', '.join(unknown)} will take" if known and unknown else ""
        print(f"\njobs left: {len(left)}{guess}{more}")
    for row in rows:
        if row["state"] == "failed":
            where = " ".join(part for part in (row["model"], row["task"], row["layers"]) if part)
            last = "".join(terminal.tail(row["log"])[-1:])
            print(f"\nfailed: {row['stage']} {where}: {row['log']}\n    {last}")


def seconds_each(rows: list[dict], used: dict) -> dict[str, float]:
    """Stage -> seconds that one model and task (and block) took of it so far.

    By all of its jobs' time, since one job may take several tasks; those of cells that are no more
    in the config do not count.
    """
    logs = {row["log"] for row in rows}
    # What is outdated took its time too.
    done = Counter(row["stage"] for row in rows if row["state"] in ("done", "outdated"))
    return {
        stage: sum(job["seconds"] for job in jobs if job["log"] in logs) / done[stage]
        for stage, jobs in used.items()
        if done[stage]
    }


def benchmarks(folder: Path, logs: Path) -> dict[str, list[dict]]:
    """What each finished job took, by stage, from Snakemake's benchmark files.

    `gpus` are (MB used, MB of the GPU), one each, from the job's log; empty without GPUs.
    """
    used = {}
    for path in sorted(folder.rglob("*.tsv")):
        job = path.relative_to(folder)
        stage = job.parts[0].removesuffix(".tsv")
        log = logs / job.with_suffix(".log")
        gpus = gpu.found(log.read_text(errors="replace")) if log.exists() else []
        with open(path) as file:
            for line in csv.DictReader(file, delimiter="\t"):
                used.setdefault(stage, []).append(
                    {"seconds": number(line["s"]), "mb": number(line["max_rss"])}
                    | {"load": number(line["mean_load"]), "gpus": gpus, "log": log}
                )
    return used


def number(text: str) -> float:
    """A benchmark's cell; short jobs have NA, which counts as nothing."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def print_benchmarks(used: dict) -> None:
    """Time, memory, processor load and GPU memory of each rule's jobs; - without a GPU."""
    table = [["rule", "jobs", "mean s", "longest s", "mean MB", "most MB", "CPUs busy"]]
    table[0] += ["GPUs", "most GPU MB"]
    for stage, jobs in used.items():
        seconds, mb = [job["seconds"] for job in jobs], [job["mb"] for job in jobs]
        times = [f"{value:.0f}" for value in (mean(seconds), max(seconds), mean(mb), max(mb))]
        load = mean(job["load"] for job in jobs) / 100
        # The fullest GPU: the one that a larger batch would overflow.
        fullest = max((each for job in jobs for each in job["gpus"]), default=None)
        share = f"{fullest[0]} of {fullest[1]}" if fullest else "-"
        most = max(len(job["gpus"]) for job in jobs)
        table.append([stage, len(jobs), *times, f"{load:.1f}", most or "-", share])
    print()
    print_table(table)


def print_table(rows: list[list]) -> None:
    """Columns of equal width, the first two to the left."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{value!s:<{width}}" for value, width in zip(row, widths)).rstrip())
