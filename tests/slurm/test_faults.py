"""Jobs, nodes and Snakemake itself are killed; the final tables stay what they were."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import datetime

import psutil
import pytest

from faults import note
from slurm.conftest import (
    END,
    GUARD,
    RUN,
    jobs,
    processes,
    remove,
    running,
    seconds_until_again,
    states,
)


def test_cancelled_hung_and_hungry_jobs_are_tried_again(fault):
    ends = [f"stages/{cell}.parquet" for cell in ("wide/towns", "wide/verbs", "seq/towns")]
    remove(fault, *ends, "lens/seq/verbs/0-2.parquet")
    # 60 MB are less than Snakemake alone takes in the job: Slurm's sampling finds it each time.
    first = ["stages:runtime=1 if attempt == 1 else 20", "lens:mem_mb=60 if attempt == 1 else 2000"]
    sweep = fault.start(*RUN, END, "--set-resources", *first)
    fault.cluster.run("scancel", running(fault, "stages_wide_towns")[0])
    for process in processes(running(fault, "stages", "seq_towns")[0]):
        if process.name().startswith("python"):
            process.suspend()
    assert sweep.wait(timeout=GUARD) == 0, fault.output()
    assert states(fault, "stages_wide_towns") == {"": ["CANCELLED", "COMPLETED"]}
    assert states(fault, "stages")["seq_towns"] == ["TIMEOUT", "COMPLETED"]
    rows = [row for row in jobs(fault.cluster, fault.last) if row["rule"] == "lens"]
    asked = {row["ReqMem"]: row["State"] for row in rows}
    # Slurm 22.05 calls it FAILED when its sampling finds the job over its memory.
    assert asked.pop("60M") in ("FAILED", "OUT_OF_MEMORY")
    assert asked == {"2000M": "COMPLETED"}
    for what, rule in (
        ("job cancelled", "stages_wide_towns"),
        ("job runs out of time", "stages_wildcards_seq_towns"),
        ("job runs out of memory", "lens"),
    ):
        sees = "`Trying to restart job N`: with as much memory and time on top"
        note(what, sees, fault.output(), seconds_until_again(fault, rule))


def test_snakemake_killed_and_resumed(fault):
    remove(fault, "stages/seq/towns.parquet", "stages/wide/verbs.parquet")
    sweep = fault.start(*RUN, END)
    running(fault, "stages")
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait(timeout=GUARD)
    left = fault.cluster.run("squeue", "-h", "-o", "%i").split()
    assert left, "the jobs outlive Snakemake"
    # The folder is locked; or an orphan just wrote what Snakemake looked at.
    again = fault.slurm(END)
    assert again.returncode and "has been submitted" not in again.stdout
    done = subprocess.run(
        [sys.executable, "-m", "vecsweep", "resume", *fault.command(*RUN[2:], END)[3:]],
        cwd=fault.folder,
        env=fault.cluster.environment | {"PYTHONPATH": str(fault.folder / "workflow")},
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # No two jobs were ever at the same file: the orphans had ended when the others were submitted.
    times = fault.cluster.run("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,Submit,End")
    rows = [line.split("|") for line in times.splitlines()]
    ends = {job: (submit, end) for job, submit, end in rows if int(job) > fault.last}
    new = [job for job in ends if job not in left]
    assert max(ends[job][1] for job in left) <= min(ends[job][0] for job in new)
    sees = "its jobs live on. *vecsweep resume* cancels those of this folder (`cancelling Slurm jobs left over: N`), "
    sees += "waits until they have ended, unlocks and goes on"
    note("Snakemake killed (-9), as where a login node is lost", sees, done.stdout + done.stderr)


def damage(path, change):
    """Change a file's bytes and not its time, so that Snakemake sees nothing."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    path.write_bytes(change(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    data[len(data) * 3 // 4] ^= 4
    return data


MOUNT = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]


@contextmanager
def full_disk(folder):
    """The files of a folder on a disk of their own, which has no room left."""
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.copytree(folder, copy)
    subprocess.run([*MOUNT, folder], check=True)
    try:
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        with suppress(OSError), open(folder / "full", "wb", buffering=0) as rest:
            while rest.write(bytes(4096)):
                continue
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(copy)


def test_damaged_states_and_a_full_disk_are_named(fault, tmp_path):
    if subprocess.run([*MOUNT, tmp_path], capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    subprocess.run(["umount", tmp_path], check=True)
    results = fault.folder / "results"
    blocks = [f"lens/{cell}/0-2.parquet" for cell in ("seq/towns", "seq/verbs", "wide/towns")]
    # Snakemake removes old outputs first, which would make room.
    remove(fault, *blocks, "stages/wide/towns.parquet", "stages/wide/verbs.parquet")
    broken = [results / "states" / "seq" / f"{task}.safetensors" for task in ("towns", "verbs")]
    damage(broken[0], truncated)
    damage(broken[1], flipped)
    with full_disk(results / "stages" / "wide"):
        done = fault.slurm(END, "--retries", "0")
    # What could be done was; each failed job's log was printed, with a line that says what to do.
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert [(results / block).exists() for block in blocks] == [False, False, True]
    for task in ("towns", "verbs"):
        says = f"vecsweep lens: results/states/seq/{task}.safetensors is damaged"
        assert says in done.stdout, done.stdout
        assert f"logs/lens/seq/{task}/0-2.log" in done.stdout
    assert "delete it and run again" in done.stdout
    says = "cannot write results/stages/wide/towns.parquet: No space left on device"
    assert says in done.stdout, done.stdout
    sees = "`X is damaged ...; delete it and run again`, by the job that reads it; the rest goes on"
    note("result damaged (cut short, one bit flipped)", sees, done.stdout, "when read")
    sees = "`cannot write X No space left on device`; nothing half is left, the rest goes on: make room and "
    sees += "run again"
    note("disk full", sees, done.stdout, "when written")
    for path in broken:
        path.unlink()
    done = fault.slurm(END)
    assert done.returncode == 0, done.stdout
    assert states(fault, "states") == {f"seq_{task}": ["COMPLETED"] for task in ("towns", "verbs")}


def kill_node(cluster, node, job):
    """Kill a node's daemon, and all that its only job started, as a power cut does."""
    daemon = int((cluster.folder / "pids" / f"slurmd.{node}").read_text())
    for process in (psutil.Process(daemon), *processes(job)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def start_node(cluster, node):
    command = ["setsid", "slurmd", "-D", "-N", node]
    log = open(cluster.folder / "log" / f"slurmd.{node}.again", "w+")
    daemon = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
    (cluster.folder / "pids" / f"slurmd.{node}").write_text(f"{daemon.pid}\n")
    for _ in range(10 * GUARD):
        state = cluster.run("sinfo", "-h", "-n", node, "-p", "cpu", "-o", "%T").strip()
        if state in ("idle", "mixed"):  # at times Slurm 22.05 still counts the lost job
            return
        time.sleep(0.1)
    log.seek(0)
    raise AssertionError(f"{node} does not come back from {state}: {log.read()}")


def test_killed_node_loses_its_job_to_another(fault):
    remove(fault, "stages/seq/towns.parquet")
    sweep = fault.start(*RUN, END)
    job, node = running(fault, "stages")
    since = datetime.now()
    kill_node(fault.cluster, node, job)
    code = sweep.wait(timeout=GUARD)
    start_node(fault.cluster, node)
    assert code == 0, fault.output()
    assert states(fault, "stages") == {"seq_towns": ["NODE_FAIL", "COMPLETED"]}
    sees = "`Trying to restart job N`: on another node. Slurm itself waits SlurmdTimeout, here 10 s"
    note("node lost", sees, fault.output(), seconds_until_again(fault, "stages", since))
