"""Jobs, nodes and Snakemake itself are killed; the final tables stay what they were."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from slurm.conftest import jobs, last_job

# Looked at again soon, for these jobs last seconds.
RUN = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2")
END = "results/summary.duckdb"


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
    assert tables(project) == project.before
    results = project.folder / "results"
    assert not [path for path in results.rglob("*") if ".tmp" in path.name]
    assert project.cluster.run("squeue", "-h") == ""


def remove(project, *paths):
    """Remove results, and the summary: Snakemake looks for them only where it is missing."""
    for path in (*paths, "summary.duckdb"):
        (project.folder / "results" / path).unlink()


def running(project, rule):
    """Wait until a job of `rule` runs: (its number, its node)."""
    for _ in range(600):
        rows = project.cluster.run("squeue", "-h", "-t", "R", "-o", "%i|%N|%k").splitlines()
        for job, node, comment in (row.split("|", 2) for row in rows):
            if comment.startswith(f"rule_{rule}"):
                time.sleep(1)  # well started
                return job, node
        time.sleep(0.1)
    raise AssertionError(f"no job of {rule} started")


def states(project, rule):
    """The states of the jobs of `rule` in this test, by number."""
    rows = jobs(project.cluster, project.last)
    rows.sort(key=lambda row: int(row["JobIDRaw"]))
    return [row["State"].split()[0] for row in rows if row["rule"] == rule]


def test_cancelled_job_is_tried_again(fault):
    remove(fault, "stages/seq/towns.parquet")
    sweep = fault.start(*RUN, END)
    fault.cluster.run("scancel", running(fault, "stages")[0])
    assert sweep.wait(timeout=180) == 0, fault.output()
    assert states(fault, "stages") == ["CANCELLED", "COMPLETED"]


def test_job_out_of_memory_gets_more(fault):
    remove(fault, "stages/seq/towns.parquet")
    # Less than Snakemake alone takes in the job: the sampling of Slurm finds it each time.
    little = "stages:mem_mb=60 if attempt == 1 else 2000"
    done = fault.slurm(END, "--set-resources", little)
    assert done.returncode == 0, done.stdout
    rows = [row for row in jobs(fault.cluster, fault.last) if row["rule"] == "stages"]
    asked = {row["ReqMem"]: row["State"] for row in rows}
    # Slurm 22.05 calls it FAILED when its sampling finds the job over its memory.
    assert asked.pop("60M") in ("FAILED", "OUT_OF_MEMORY")
    assert asked == {"2000M": "COMPLETED"}


def test_snakemake_killed_and_resumed(fault):
    remove(fault, "stages/seq/towns.parquet", "stages/wide/verbs.parquet")
    sweep = fault.start(*RUN, END)
    running(fault, "stages")
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    left = fault.cluster.run("squeue", "-h", "-o", "%i").split()
    assert left, "the jobs outlive Snakemake"
    locked = fault.slurm(END)
    assert locked.returncode and "cannot be locked" in locked.stdout
    done = subprocess.run(
        [sys.executable, "-m", "vecsweep.resume", *fault.command(*RUN[2:], END)[3:]],
        cwd=fault.folder,
        env=fault.cluster.environment | {"PYTHONPATH": str(fault.folder / "workflow")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # No two jobs were ever at the same file: the orphans had ended when the others were submitted.
    times = fault.cluster.run("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,Submit,End")
    rows = [line.split("|") for line in times.splitlines()]
    ends = {job: (submit, end) for job, submit, end in rows if int(job) > fault.last}
    new = [job for job in ends if job not in left]
    assert max(ends[job][1] for job in left) <= min(ends[job][0] for job in new)


def test_truncated_states_are_named_and_made_again(fault):
    broken = fault.folder / "results" / "states" / "seq" / "towns.safetensors"
    remove(fault, "lens/seq/towns/0-2.parquet")
    stat = broken.stat()
    os.truncate(broken, stat.st_size // 2)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = fault.slurm(END, "--retries", "0")
    assert done.returncode
    says = "results/states/seq/towns.safetensors is damaged"
    assert says in done.stdout, done.stdout  # show-failed-logs
    assert "delete it and run again" in done.stdout
    broken.unlink()
    done = fault.slurm(END)
    assert done.returncode == 0, done.stdout
    assert states(fault, "states") == ["COMPLETED"]


def kill_node(cluster, node, job):
    """Kill a node's daemon, and all that its only job started, as a power cut does."""
    victims = [int((cluster.folder / "pids" / f"slurmd.{node}").read_text())]
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{job}."):
            victims += [process.pid, *(child.pid for child in process.children(recursive=True))]
    for pid in victims:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def start_node(cluster, node):
    command = ["setsid", "slurmd", "-D", "-N", node]
    log = open(cluster.folder / "log" / f"slurmd.{node}.again", "w")
    daemon = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
    (cluster.folder / "pids" / f"slurmd.{node}").write_text(f"{daemon.pid}\n")
    for _ in range(300):
        if cluster.run("sinfo", "-h", "-n", node, "-p", "cpu", "-o", "%T").strip() == "idle":
            return
        time.sleep(0.1)
    raise AssertionError(f"{node} does not come back")


def test_killed_node_loses_its_job_to_another(fault):
    remove(fault, "stages/seq/towns.parquet")
    sweep = fault.start(*RUN, END)
    job, node = running(fault, "stages")
    kill_node(fault.cluster, node, job)
    code = sweep.wait(timeout=240)
    start_node(fault.cluster, node)
    assert code == 0, fault.output()
    assert states(fault, "stages") == ["NODE_FAIL", "COMPLETED"]
