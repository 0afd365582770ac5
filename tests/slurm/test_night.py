"""A bad night on the cluster: jobs are preempted, the queue is full, nodes fail, the connection is lost."""

import fcntl
import os
import signal
import subprocess
import termios
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from faults import note
from slurm.conftest import GUARD, RUN, jobs, processes, running, seconds_until_again, states
from slurm.test_faults import start_node

STAGES = [f"results/stages/seq/{task}.parquet" for task in ("towns", "verbs")]
STATES = [f"results/states/wide/{task}.safetensors" for task in ("towns", "verbs")]


def contents(project):
    """What the results hold that these tests make again."""
    tables = [pq.read_table(project.folder / path) for path in STAGES]
    return tables, [load_file(project.folder / path) for path in STATES]


@pytest.fixture
def night(fault):
    """The finished sweep; afterwards its results are the same."""
    tables, tensors = contents(fault)
    yield fault
    again, found = contents(fault)
    assert all(mine.equals(other) for mine, other in zip(tables, again))
    for mine, other in zip(tensors, found):
        assert mine.keys() == other.keys()
        assert all(mine[name].equal(other[name]) for name in mine)


def without(project, *paths):
    """Remove results, to have them made again."""
    for path in paths:
        (project.folder / path).unlink()


def test_preempted_job_is_tried_again_and_asks_for_no_more_than_a_node_has(night):
    without(night, STAGES[0])
    asked = [
        "stages:mem_mb=2000 if attempt == 1 else 99999",
        "stages:runtime=9 if attempt == 1 else 9999",
    ]
    sweep = night.start(*RUN, STAGES[0], "--set-resources", *asked)
    _, node = running(night, "stages")
    urgent = ["-A", "lab", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null"]
    night.cluster.run("sbatch", *urgent, "--wrap", "sleep 1")
    assert sweep.wait(timeout=GUARD) == 0, night.output()
    assert "stages asks for 99999 MB (mem_mb), and gets 16000: no node of its" in night.output()
    rows = [row for row in jobs(night.cluster, night.last) if row["rule"] == "stages"]
    rows.sort(key=lambda row: int(row["JobIDRaw"]))
    assert [row["State"] for row in rows] == ["PREEMPTED", "COMPLETED"]
    assert [row["Timelimit"] for row in rows] == ["00:09:00", "1-00:00:00"]
    seconds = seconds_until_again(night, "stages")
    assert seconds < 30
    sees = "`Slurm job N is PREEMPTED`; tried again, and counted as a try"
    note("job preempted", sees, night.output(), seconds)
    sees = (
        "`stages asks for 99999 MB (mem_mb), and gets 16000: no node of its partition gives more`"
    )
    what = "more memory or time asked for than the partition has, as by a third try"
    note(what, sees, night.output(), "at once")


def test_full_queue_is_waited_out(night):
    without(night, *STAGES)
    limit = ["sacctmgr", "-i", "modify", "account", "lab", "set"]
    night.cluster.run(*limit, "MaxSubmitJobs=1")
    try:
        done = night.slurm(*STAGES, "--retries", "0")
    finally:
        night.cluster.run(*limit, "MaxSubmitJobs=-1")
    assert done.returncode == 0, done.stdout
    assert "stages waits to be submitted, for Slurm says: AssocMaxSubmitJobLimit" in done.stdout
    found = {"seq_towns": ["COMPLETED"], "seq_verbs": ["COMPLETED"]}
    assert states(night, "stages") == found
    sees = "`stages waits to be submitted, for Slurm says: AssocMaxSubmitJobLimit`"
    sees += "; tried every 5 to 60 s, which uses up no retry"
    note("queue full (limits of the account)", sees, done.stdout, "at once")


def test_controller_that_is_away_is_waited_for(night):
    without(night, *STAGES)
    pid = night.cluster.folder / "pids" / "slurmctld"
    controller = psutil.Process(int(pid.read_text()))
    controller.kill()
    sweep = night.start(*RUN, *STAGES, "--retries", "0")
    sees = "stages waits to be submitted, for Slurm says: Unable to contact slurm controller"
    while sees not in night.output() and sweep.poll() is None:
        time.sleep(0.1)
    log = open(night.cluster.folder / "log" / "slurmctld.again", "w")
    command = ["setsid", "slurmctld", "-D"]
    again = subprocess.Popen(command, env=night.cluster.environment, stdout=log, stderr=log)
    pid.write_text(f"{again.pid}\n")
    assert sweep.wait(timeout=GUARD) == 0, night.output()
    assert states(night, "stages") == {"seq_towns": ["COMPLETED"], "seq_verbs": ["COMPLETED"]}
    sees = f"`{sees}`; tried every 5 to 60 s, which uses up no retry"
    note("Slurm's controller is away", sees, night.output(), "at once")


def test_failed_node_is_given_back_where_there_is_no_other(night):
    without(night, *STATES)
    sweep = night.start(*RUN, *STATES)
    job, _ = running(night, "states_wide_towns")
    left = []
    for process in processes(job):
        with suppress(psutil.NoSuchProcess):  # helpers of a start come and go
            if process.name().startswith("python"):
                process.suspend()
                left.append(process)
    psutil.Process(int((night.cluster.folder / "pids" / "slurmd.node2").read_text())).kill()
    try:
        for _ in range(600):
            if "may be used again" in night.output() or sweep.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        for process in (*left, *processes(job)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        start_node(night.cluster, "node2")
    assert sweep.wait(timeout=GUARD) == 0, night.output()
    assert "Nodes that failed may be used again: node[1-2]" in night.output()
    # Slurm notes as FAILED what it refused.
    assert states(night, "states_wide_towns") == {"": ["NODE_FAIL", "FAILED", "COMPLETED"]}
    sees = (
        "`Nodes that failed may be used again: ...`; until then it gets no job, else for 5 minutes"
    )
    note("node lost, and there is no other", sees, night.output(), "at once")


def on_the_terminal():
    """What a login shell gives its commands, also where these tests run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGHUP, signal.SIGINT):  # the latter is ignored in a shell's background
        signal.signal(number, signal.SIG_DFL)


def on_a_terminal(project, *options):
    """Start Snakemake on a terminal of its own: the process, and the terminal's other end."""
    ours, its = os.openpty()
    project.process = subprocess.Popen(
        project.command(*options),
        cwd=project.folder,
        env=project.cluster.environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=on_the_terminal,
    )
    os.close(its)
    return project.process, ours


def test_lost_connection_ends_as_a_wish_to_stop(night):
    without(night, STAGES[0])
    sweep, terminal = on_a_terminal(night, *RUN, *STAGES)
    running(night, "stages")
    os.close(terminal)
    sweep.wait(timeout=120)
    sees = "submits nothing more, waits for the jobs that run, unlocks: the same command goes on"
    note("connection lost (SIGHUP)", sees, "", "at once")
    # What ran was finished, the folder is not locked, and nothing is made twice.
    assert night.cluster.run("squeue", "-h") == ""
    done = night.slurm(*STAGES)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout
    assert states(night, "stages") == {"seq_towns": ["COMPLETED"]}


def test_ctrl_c_cancels_and_unlocks(night):
    without(night, STAGES[0])
    sweep, terminal = on_a_terminal(night, *RUN, *STAGES)
    running(night, "stages")
    os.write(terminal, b"\x03")
    since, said = time.monotonic(), b""
    with suppress(OSError):  # of a terminal whose other end is closed
        while more := os.read(terminal, 4096):
            said += more
    os.close(terminal)
    assert sweep.wait(timeout=GUARD) != 0
    seconds = time.monotonic() - since
    for _ in range(300):  # until a cancelled job has ended
        if not night.cluster.run("squeue", "-h"):
            break
        time.sleep(0.1)
    done = night.slurm(*STAGES)
    assert done.returncode == 0, done.stdout
    assert states(night, "stages") == {"seq_towns": ["CANCELLED", "COMPLETED"]}
    sees = "cancels its jobs, those too that are just being submitted, and unlocks: the same command goes on"
    note("Ctrl-C", sees, said.decode(), seconds)


def test_stopped_process_on_another_node_is_named(night):
    without(night, *STATES)
    sweep = night.start(*RUN, *STATES, VECSWEEP_HANG_SECONDS="5")
    job, _ = running(night, "states_wide_towns")
    stopped = None
    while not stopped:
        for process in processes(job):
            with suppress(psutil.Error):
                has = process.environ()
                sign = Path(has.get("VECSWEEP_SIGNS", ""), f"{has.get('RANK')}.{process.pid}")
                if has.get("RANK") == "1" and sign.is_file():  # before, it imports
                    stopped = process
    stopped.suspend()
    since = time.monotonic()
    while stopped.is_running() and time.monotonic() - since < 60:
        time.sleep(0.1)
    seconds = time.monotonic() - since
    assert seconds < 15
    assert sweep.wait(timeout=GUARD) == 0, night.output()
    assert "process 1 hangs at" in night.output()
    assert "most recent call first" in night.output()
    sees = "`process 1 hangs at X no progress for 5 s`, and the stacks of all in the stage's log; tried again. "
    sees += "VECSWEEP_HANG_SECONDS, 45, was 5"
    note("a process of a sharded model hangs", sees, night.output(), seconds)
    assert states(night, "states_wide_towns") == {"": ["FAILED", "COMPLETED"]}
