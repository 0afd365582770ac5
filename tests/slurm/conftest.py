"""A real Slurm for the tests: two nodes with fake GPUs and accounting, started once a session."""

import compileall
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import duckdb
import psutil
import pytest
import yaml

import tiny
from conftest import copy_code

HERE = Path(__file__).parent
REPO = HERE.parent.parent
BIN = Path(sys.executable).parent
# One GPU of each node for a model's shard: two shards make a job over two nodes.
SITE = {
    "account": "lab",
    "cpu_partition": "cpu",
    "gpu_partition": "gpu",
    "gpus_per_node": 1,
    "gpu_memory_gb": 80,
    "gpu_model": "fake",
    "cpus_per_gpu": 2,
    "max_hours": 24,
    "modules": [],
    "slurm_extra": None,
    "container": None,
    "models": {},
}
# Looked at again soon, for these jobs last seconds.
RUN = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2")
END = "results/summary.duckdb"
# Seconds after which something hangs; a slow machine with other work beside takes minutes.
GUARD = 1200
ENDS = ("results/summary.duckdb", "results/figures/crossover.svg")


def free_ports(count=24):
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(16800, 32000, 100):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def cluster():
    """Slurm's commands: `.environment` finds them, `.run("squeue", ...)` gives their output."""
    # Sockets need a short path, which pytest's own folders are not.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    ports = str(free_ports())
    sizes = {"MEM": "16000", "CPUS": "4", "BASEPORT": ports}
    up = [HERE / "cluster-up.sh", folder, "sacct"]
    try:
        subprocess.run(up, check=True, env=os.environ | sizes, timeout=GUARD)
        environment = os.environ | {
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": os.pathsep.join([str(folder / "bin"), str(BIN), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

        def run(*command):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield SimpleNamespace(folder=folder, environment=environment, run=run)
    finally:
        subprocess.run([HERE / "cluster-down.sh", folder], timeout=GUARD)
        shutil.rmtree(folder, ignore_errors=True)


def copy_of_the_code(folder):
    """The repository's root as a user has it, links and all, with the tests' site file."""
    copy_code(folder, "slurm")
    # Jobs of seconds are looked at every few, not up to every 30.
    executor = folder / "workflow" / "vecsweep" / "slurm.py"
    text = executor.read_text()
    assert text.count("\nPOLL_SECONDS = 30 ") == 1
    text = text.replace("\nPOLL_SECONDS = 30 ", "\nPOLL_SECONDS = 3 ")
    # A slow machine: the first look at jobs comes before the executor is made.
    start = "        self._ending = threading.Event()\n"
    assert text.count(start) == 1
    executor.write_text(text.replace(start, f"        time.sleep(0.5)\n{start}"))
    # No process of a job writes bytecode, so that none needs to compile all anew.
    compileall.compile_dir(folder / "workflow", quiet=1)
    example = folder / "workflow" / "profiles" / "slurm" / "site.example.yaml"
    assert yaml.safe_load(example.read_text()).keys() == SITE.keys()
    example.with_name("site.yaml").write_text(yaml.safe_dump(SITE))


class Project:
    """A copy of the repository with tiny models and tasks, run by Snakemake on the cluster."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        folder.mkdir(exist_ok=True)
        copy_of_the_code(folder)
        self.config = {
            "models": {},
            "tasks": {},
            "prompts": {"max_prompts": 4},
            "summary": {"resamples": 100},
            "interventions": {"tasks": []},
            "ablations": {"tasks": []},
            "swaps": {"tasks": []},
        }

    def add_model(self, name, kind, **settings):
        """Save a tiny random model and write it into the config."""
        tiny.save(kind, self.folder / "weights" / name)
        base = {"source": "local", "path": f"weights/{name}", "layers": 3, "dtype": "float32"}
        base["tasks_per_job"] = 1
        self.config["models"][name] = base | settings

    def add_task(self, name):
        tiny.write_task(self.folder / "tasks", name)
        self.config["tasks"][name] = {"file": f"tasks/{name}.yaml"}

    def command(self, *options):
        (self.folder / "run.yaml").write_text(yaml.safe_dump(self.config))
        words = ("snakemake", "--cores", "all", *options, "--configfile", "run.yaml")
        return [str(word) for word in words]

    def start(self, *options, **changes):
        """Start Snakemake, its output in out.txt."""
        out = open(self.folder / "out.txt", "w")
        self.process = subprocess.Popen(
            self.command(*options),
            cwd=self.folder,
            env=self.cluster.environment | changes,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self.process

    def end(self):
        """Kill the latest Snakemake, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def run(self, *options):
        """Run Snakemake to its end: its exit code and output; where it hangs, if it does."""
        try:
            code = self.start(*options, PYTHONFAULTHANDLER="1").wait(timeout=GUARD)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # prints all stacks
            self.process.wait()
            pytest.fail(self.output()[-12000:])
        finally:
            self.end()
        return SimpleNamespace(returncode=code, stdout=self.output())

    def output(self):
        """What the latest Snakemake printed."""
        return (self.folder / "out.txt").read_text()

    def slurm(self, *options):
        """Run on the cluster, as a user does; soon looking again, for jobs of seconds."""
        soon = ("--slurm-init-seconds-before-status-checks", "2")
        return self.run("--profile", "slurm", *soon, *options)

    def query(self, sql):
        with duckdb.connect(str(self.folder / "results" / "summary.duckdb"), read_only=True) as db:
            return db.execute(sql).fetchall()


@pytest.fixture(scope="session")
def project(cluster, tmp_path_factory):
    """Two models and two tasks, nothing run yet."""
    made = Project(tmp_path_factory.mktemp("sweep") / "vecsweep", cluster)
    made.add_model("seq", "llama")
    made.add_model("wide", "bloom", shards=2, tasks_per_job="auto")
    for task in ("towns", "verbs"):
        made.add_task(task)
    return made


@pytest.fixture(scope="session")
def swept(project):
    """The project after `snakemake --cores all --profile slurm`: Slurm's records, its output.

    One figure stands for the others, which are drawn alike and not by Slurm.
    """
    done = project.slurm(*ENDS)
    assert done.returncode == 0, done.stdout[-6000:]
    done.jobs = jobs(project.cluster)
    return done


def last_job(cluster):
    """The number of the newest job."""
    return max((int(row["JobIDRaw"]) for row in jobs(cluster)), default=0)


def jobs(cluster, since=0):
    """Slurm's own records of the jobs after number `since`, as dicts, when it has them all.

    `rule` and `wildcards` are from the comment that the executor gives each job.
    """
    fields = "JobIDRaw,State,Comment,Partition,Account,NNodes,AllocTRES,ReqMem,Timelimit,NodeList"
    names = fields.split(",")
    for _ in range(50):
        text = cluster.run("sacct", "-X", "-n", "-P", "-a", "-S", "2000-01-01", "-o", fields)
        rows = [dict(zip(names, line.split("|"))) for line in text.splitlines()]
        rows = [row for row in rows if int(row["JobIDRaw"]) > since]
        if rows and all(row["State"] not in ("RUNNING", "PENDING") for row in rows):
            break
        time.sleep(0.2)
    for row in rows:
        rule, _, row["wildcards"] = row["Comment"].partition("_wildcards_")
        row["rule"] = rule.removeprefix("rule_")
    return rows


def tables(project):
    """Every table of the summary, as sets of rows."""
    names = "SELECT table_name FROM duckdb_tables() WHERE table_name != 'runs' ORDER BY ALL"
    return {
        name: sorted(map(repr, project.query(f"SELECT * FROM {name}")))
        for (name,) in project.query(names)
    }


@pytest.fixture
def fault(project, swept):
    """The finished sweep; afterwards its tables are the same, no file is half, no job is left."""
    project.before = tables(project)
    project.last = last_job(project.cluster)
    assert len(project.before["lens"]) > 100
    yield project
    project.end()
    assert tables(project) == project.before
    results = project.folder / "results"
    assert not [path for path in results.rglob("*") if ".tmp" in path.name]
    assert project.cluster.run("squeue", "-h") == ""


def remove(project, *paths):
    """Remove results, and the summary: Snakemake looks for them only where it is missing."""
    for path in (*paths, "summary.duckdb"):
        (project.folder / "results" / path).unlink()


def running(project, rule, wildcards=""):
    """Wait until a job of `rule` runs: (its number, its node)."""
    for _ in range(10 * GUARD):
        rows = project.cluster.run("squeue", "-h", "-t", "R", "-o", "%i|%N|%k").splitlines()
        for job, node, comment in (row.split("|", 2) for row in rows):
            name, _, found = comment.partition("_wildcards_")
            if name == f"rule_{rule}" and found.startswith(wildcards):
                time.sleep(1)  # well started
                return job, node
        time.sleep(0.1)
    raise AssertionError(f"no job of {rule} started")


def processes(job):
    """Slurm's own process of a running job, and all that it started."""
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{job}."):
            with suppress(psutil.NoSuchProcess):  # a step may end meanwhile
                yield from [process, *process.children(recursive=True)]


def seconds_until_again(project, rule, since=None):
    """From the end of a rule's first job, or a datetime before, to the submission of its next one."""
    fields = ["-X", "-n", "-P", "-o", "JobIDRaw,Comment,Submit,End"]
    rows = [row.split("|") for row in project.cluster.run("sacct", *fields).splitlines()]
    rows = [row for row in rows if int(row[0]) > project.last and row[1].startswith(f"rule_{rule}")]
    (_, _, _, end), (_, _, again, _) = sorted(rows, key=lambda row: int(row[0]))[:2]
    start = since or datetime.fromisoformat(end)
    return (datetime.fromisoformat(again) - start).total_seconds()


def states(project, rule):
    """The states of the jobs of `rule` in this test, by wildcards, in their order."""
    rows = jobs(project.cluster, project.last)
    rows.sort(key=lambda row: int(row["JobIDRaw"]))
    found = {}
    for row in rows:
        if row["rule"] == rule:
            found.setdefault(row["wildcards"], []).append(row["State"].split()[0])
    return found
