"""How far a run of Snakemake is, stage by stage, from its events and what its jobs have written.

The logger plugin `snakemake_logger_plugin_vecsweep` hands the events on.
"""

import logging
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from vecsweep import sweep
from vecsweep.layout import STAGES
from vecsweep.terminal import bar, console, duration, reasons, rough, tail

EACH = 1.0  # seconds between two looks at what the jobs have written
# Snakemake's own words at the end of a run in which a job failed: that is said already.
SAID = re.compile(r"^Exiting because a job|At least one job did not complete|^Complete log")
USUAL = re.compile(r"--keep-incomplete mode is set")
COUNT = re.compile(r"(\d+) of (\d+) prompts")


@dataclass
class Job:
    """A job that runs: its results and its log, as absolute paths, and how many cells it makes."""

    stage: str
    cells: int
    message: str
    outputs: list[str]
    log: str
    start: float = field(default_factory=time.time)

    def done(self) -> float:
        """The cells that are done, by the results that are there and the last task's progress."""
        fresh = sum(map(self._fresh, self.outputs)) / max(len(self.outputs), 1)
        whole = self.cells * fresh
        counts = [COUNT.search(line) for line in tail(self.log, 400)[-1:]]
        part = int(counts[0][1]) / int(counts[0][2]) if counts and counts[0] else 0.0
        # A task at its last prompt may still have to write, or be the one that is counted.
        return min(whole + (part if part < 1 else 0), self.cells - 0.01)

    def _fresh(self, path: str) -> bool:
        try:
            return os.stat(path).st_mtime >= self.start - 1
        except OSError:
            return False


@dataclass
class Line:
    """A stage: cells that it has to make and those of finished jobs, jobs, time that it ran."""

    total: int = 0
    done: int = 0
    jobs: int = 0
    running: int = 0
    since: float = 0.0
    ran: float = 0.0

    def time(self) -> float:
        """Seconds in which at least one job of the stage ran."""
        return self.ran + (time.time() - self.since if self.running else 0)


class Run:
    """The state of a run, from Snakemake's log records; it prints nothing."""

    def __init__(self):
        self.start = time.time()
        self.lines: dict[str, Line] = {}
        self.rules: dict[str, int] = {}  # rule -> jobs of it
        self.jobs: dict[int, Job] = {}
        self.failed: dict[int, tuple[str, str, list[str], str]] = {}  # stage, message, reasons, log
        self.stopped = False  # by the keyboard
        self.errors: list[str] = []  # not of a job

    def take(self, record: logging.LogRecord) -> str | None:
        """Note an event; the stage that is finished by it, if one is."""
        event = str(getattr(record, "event", None) or "")
        if event == "run_info":
            self.rules = {r: n for r, n in record.stats.items() if r not in ("all", "total")}
        elif event == "job_info":
            self._started(record)
        elif event == "job_finished":
            return self._ended(record.job_id)
        elif event == "job_error":
            self._failed(record)
        elif record.levelno >= logging.ERROR and not SAID.search(text := record.getMessage()):
            self.errors += plain(text)
        return None

    def plan(self) -> None:
        """Lay out the lines."""
        if self.lines:
            return
        sizes = group_sizes(sweep.GROUPS)
        for rule, jobs in self.rules.items():
            cells = next((n for pattern, n in sizes if pattern.fullmatch(rule)), 1)
            line = self.lines.setdefault(stage_of(rule), Line())
            line.total += jobs * cells
            line.jobs += jobs
        self.lines = {name: self.lines[name] for name in sorted(self.lines, key=place)}

    def _started(self, record):
        self.plan()
        stage = stage_of(record.rule_name)
        if stage not in self.lines:
            return
        outputs = [os.path.abspath(path) for path in record.output]
        log = os.path.abspath(record.log[0]) if record.log else ""
        said = record.rule_msg or record.rule_name
        sizes = group_sizes(sweep.GROUPS)
        cells = next((n for pattern, n in sizes if pattern.fullmatch(record.rule_name)), 1)
        self.jobs[record.jobid] = Job(stage, cells, said, outputs, log)
        line = self.lines[stage]
        if not line.running:
            line.since = time.time()
        line.running += 1

    def _ended(self, jobid, done=True):
        job = self.jobs.pop(jobid, None)
        if job is None:
            return None
        line = self.lines[job.stage]
        if line.running == 1:
            line.ran = line.time()
        line.running -= 1
        if done:
            self.failed.pop(jobid, None)  # an earlier try
            line.done += job.cells
        return job.stage if done and line.done == line.total else None

    def _failed(self, record):
        job = self.jobs.get(record.jobid)
        self._ended(record.jobid, done=False)
        stage = stage_of(record.rule_name)
        log = job.log if job else os.path.abspath(record.log[0]) if record.log else ""
        why = reasons(log, stage)
        last = tail(log)[-1:]
        if last == ["KeyboardInterrupt"]:
            self.stopped = True
            return
        if not why:
            why = [f"its log ends: {last[0]}"] if last else ["its log is empty"]
            if not any(text.startswith("Traceback") for text in tail(log)):
                why.append(
                    "It was killed, or memory ran out: free some, or run fewer jobs (CORES=1)."
                )
        if record.rule_msg:  # what a cluster says of it
            why.append(" ".join(str(record.rule_msg).split()))
        message = job.message if job else record.rule_name
        self.failed[record.jobid] = stage, message, why, log

    def fraction(self, stage: str) -> float:
        """What is done of a stage, from 0 to 1, results of running jobs included."""
        line = self.lines[stage]
        part = sum(job.done() for job in list(self.jobs.values()) if job.stage == stage)
        return min((line.done + part) / line.total, 1.0)

    def left(self, fractions: dict[str, float]) -> float | None:
        """Seconds until the end, by how long what is done took; None while too little is.

        A cell weighs what its stage asks for by a model's size: minutes a GB.
        """
        asked = {name: stage.minutes[1] for name, stage in STAGES.items()}
        weights = {s: line.total * max(1, asked.get(s, 0)) for s, line in self.lines.items()}
        done = sum(weights[stage] * fractions[stage] for stage in weights)
        share = done / sum(weights.values())
        return (time.time() - self.start) * (1 - share) / share if share > 0.03 else None


class Display:
    """Shows a run: bars that move on a terminal, elsewhere a line for each stage that is finished."""

    def __init__(self, dryrun: bool = False, out=None, err=None):
        self.run, self.dryrun = Run(), dryrun
        self.out, self.err = out or console(), err or console(stderr=True)
        self.live = None
        self.looked, self.shown = 0.0, None
        self.closed = self.seen = False

    def take(self, record: logging.LogRecord) -> None:
        """Show what a log record of Snakemake's changes."""
        job = self.run.jobs.get(getattr(record, "job_id", -1))
        finished = self.run.take(record)
        event = str(getattr(record, "event", None) or "")
        if record.levelno == logging.WARNING and not event and not USUAL.match(record.getMessage()):
            self.say(record.getMessage())
        if record.getMessage().startswith("Nothing to be done"):
            self.say("Every result is there already.")
        if self.dryrun:
            return
        if event == "job_info" and self.live is None and self.out.is_terminal:
            from rich.live import Live

            self.live = Live(
                get_renderable=self.table, console=self.out, refresh_per_second=2 / EACH
            )
            self.live.start(refresh=True)  # what is over within a second is seen to begin too
        if finished and not self.out.is_terminal:
            line = self.run.lines[finished]
            self.say(f"{finished}: {line.total} of {line.total} in {duration(line.time())}")
        if event == "job_finished" and job and job.stage == "stages" and not self.seen:
            from vecsweep.first_look import first_look  # pyarrow and duckdb: not at every start

            lines = first_look(Path(job.outputs[0]))
            self.seen = bool(lines)
            for text in lines:
                self.out.print(text, soft_wrap=True)

    def say(self, text: str) -> None:
        self.out.print(text, markup=False, soft_wrap=True)

    def table(self):
        """The lines of all stages as rich shows them; results are looked for now and then only."""
        if time.time() - self.looked > EACH or self.shown is None:
            self.looked, self.shown = time.time(), self._table()
        return self.shown

    def _table(self):
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        run = self.run
        fractions = {stage: run.fraction(stage) for stage in run.lines}
        for stage, line in run.lines.items():
            part, passed = fractions[stage], line.time()
            count = f"{int(part * line.total + 1e-6)} of {line.total}"
            said, look = "", "dim"
            if line.done == line.total:
                said, look = duration(passed), "green"
            elif line.running:
                look = "bold"
                said = f"{rough(passed * (1 - part) / part)} left" if part else duration(passed)
            elif any(failed == stage for failed, *_ in list(run.failed.values())):
                said, look = "failed", "red"
            rows.add_row(Text(stage, look), Text(bar(part), look), count, said)
        left = run.left(fractions)
        passed = f"{duration(time.time() - run.start)} so far"
        rows.add_row("", "", "", passed + (f", about {rough(left)} left" if left else ""))
        return rows

    def close(self) -> None:
        """Stop the bars and say what failed, last and alone."""
        if self.closed:
            return
        self.closed = True
        if self.live is not None:
            self.looked = 0.0
            self.live.stop()
        run = self.run
        if self.dryrun:
            run.plan()
            for stage, line in run.lines.items():
                self.say(f"{stage}: {line.total} to make, in {line.jobs} jobs")
        for _, message, why, log in run.failed.values():
            self._print_error(f"failed: {message}", [*why, f"log: {os.path.relpath(log)}"])
        if run.failed or run.stopped:
            self._print_error(
                "Stopped. " * run.stopped
                + "What is finished is kept: the same command goes on from there.",
                [],
            )
        elif run.errors:
            self._print_error(run.errors[0], run.errors[1:])

    def _print_error(self, head: str, lines: list[str]) -> None:
        self.out.file.flush()
        self.err.print(head, style="bold red" if lines else "", markup=False, soft_wrap=True)
        for line in lines:
            self.err.print(f"  {line}", markup=False, soft_wrap=True)


def stage_of(rule: str) -> str:
    """The stage of a rule: groups of tasks, and figures, have rules that begin with its name.

    In a module of another workflow behind a prefix, as vecsweep_; a rule of that workflow is its own.
    """
    words = ["figures" if word == "figure" else word for word in rule.split("_")]
    return next((word for word in words if word in STAGES), words[0])


def place(stage: str) -> int:
    return [*STAGES].index(stage) if stage in STAGES else len(STAGES)


def group_sizes(groups: dict) -> list[tuple[re.Pattern, int]]:
    """(pattern of a rule's name, tasks of its job) for every job that takes several."""
    found = []
    for model, by_stage in groups.items():
        for stage, jobs in by_stage.items():
            for tasks in jobs:
                name = re.escape("_".join([stage, model, tasks[0]]).replace("-", "_"))
                found.append((re.compile(rf"(.+_)?{name}(_\d+_\d+)?(_\d+)?"), len(tasks)))
    return found


def plain(text: str) -> list[str]:
    """The lines of one of Snakemake's errors without its head, where that says nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and re.match(r"\w*(Error|Exception)\b.*:$", lines[0]):
        return [line for line in lines[1:] if not re.match(r'File ".*", line \d+', line)]
    return lines
