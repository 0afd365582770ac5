"""What Snakemake's Slurm executor (plugin 2.8) lacks on a bad night: here, once, as a subclass of it.

It waits for ever on preempted jobs, and on jobs whose end it did not see; it takes a full queue for
a failed job; asks for more than any node has; and never gives a failed node back.
"""

import os
import re
import signal
import stat
import subprocess
import threading
import time
from contextlib import suppress

from snakemake_executor_plugin_slurm import Executor as Plugin
from snakemake_executor_plugin_slurm.job_status_query import (
    query_job_status,
    query_job_status_sacct,
    query_job_status_squeue,
)
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from snakemake_interface_executor_plugins.utils import format_cli_arg

# Every state that Slurm has. The plugin knows these: what it calls failed is tried again.
KNOWN = {"COMPLETED", "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
KNOWN |= {"TIMEOUT"}
# Ended, and the plugin waits on.
LOST = {"PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
# Back in the queue, to stay there until somebody releases it: cancelled, and tried again.
HELD = {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# REVOKED: another cluster of a federation runs it.
WAITED = {"PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "EXPEDITING", "REVOKED"}
WAITED |= {"POWER_UP_NODE", "REQUEUED", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT"}
WAITED |= {"STOPPED", "UPDATE_DB"}

# What a refused sbatch says that will pass: limits of the queue, and a controller that is busy or away.
PASSING = re.compile(
    r"\w*(?:Max|Grp)\w*Submit\w*|Unable to contact slurm controller|Socket timed out|"
    r"temporarily unable|temporarily unavailable|Zero Bytes were transmitted"
)
NO_SUCH_NODE = "Requested node configuration is not available"

MISSING_SECONDS = 60  # squeue does not know a job: sacct is asked
AWAY_SECONDS = 300  # a node that failed gets no job of this sweep
POLL_SECONDS = 30  # at most between two looks at the jobs; the plugin goes up to 180
PAUSE_SECONDS = 60  # at most between two tries to submit


def mend() -> None:
    """Let `executor: slurm` take this module's executor, and SIGHUP end Snakemake as SIGTERM does."""
    if ExecutorPluginRegistry().is_installed("slurm"):
        ExecutorPluginRegistry().get_plugin("slurm").executor = Executor
    # Under nohup it stays ignored.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, hung_up)


def hung_up(number, frame) -> None:
    """The connection was lost: finish as after SIGTERM, with nowhere to print to."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):  # a terminal: writing to it is an error now
            os.dup2(nowhere, stream)
    finish = signal.getsignal(signal.SIGTERM)
    if callable(finish):
        # It takes a lock that the interrupted code may hold.
        threading.Thread(target=finish, args=(number, frame)).start()
    else:  # no job has started yet
        os.kill(os.getpid(), signal.SIGTERM)


class Executor(Plugin):
    """The plugin's executor, and what is mended of it."""

    def __post_init__(self, *args, **kwargs):
        self._ending = threading.Event()
        self._refused: dict[int, str] = {}  # id of a job -> what sbatch said
        self._capped: dict[int, dict[str, int]] = {}  # id of a job -> its resources
        self._missing: dict[str, float] = {}  # Slurm's job -> since when squeue does not know it
        self._failed_at: dict[str, float] = {}  # node -> when the plugin began to avoid it
        super().__post_init__(*args, **kwargs)
        first = self.workflow.executor_settings.init_seconds_before_status_checks
        self._pause = self._first_pause = first

    async def check_active_jobs(self, active_jobs):
        """Report the jobs that ended; yield those that still run. The plugin does most of them."""
        if not active_jobs:
            # The thread that looks at jobs starts before `__post_init__`: nothing of it is here yet.
            # Were it to fail now, nobody would ever see a job end.
            async for job in super().check_active_jobs(active_jobs):
                yield job
            return
        states, _ = await query_job_status(
            query_job_status_squeue(self.run_uuid), self.logger
        )  # None: squeue failed
        rest = active_jobs
        if states is not None:
            rest = [job for job in active_jobs if not await self.ended(job, states)]
        async for job in super().check_active_jobs(rest):
            yield job
        self.next_seconds_between_status_checks = min(
            self.next_seconds_between_status_checks, POLL_SECONDS
        )
        for node in self._failed_nodes:
            self._failed_at.setdefault(node, time.monotonic())
        self.give_back(AWAY_SECONDS)

    async def ended(self, job, states: dict[str, str]) -> bool:
        """Whether a job ended in a way that the plugin does not see; then it was reported."""
        number = job.external_jobid
        state = states.get(number)
        if state is not None:
            self._missing.pop(number, None)
        elif (
            time.monotonic() - self._missing.setdefault(number, time.monotonic()) < MISSING_SECONDS
        ):
            return False
        else:
            found, _ = await query_job_status(query_job_status_sacct(self.run_uuid), self.logger)
            state = (found or {}).get(number, "UNKNOWN").split()[0]  # of "CANCELLED by 1000"
            if state == "COMPLETED":
                self.report_job_success(job)
                return True
            if state not in WAITED:
                self.report(job, f"has left the queue as {state}")
                return True
        if state in HELD:
            subprocess.run(["scancel", number], capture_output=True)
        if state in HELD or state in LOST and not self.workflow.executor_settings.requeue:
            self.report(job, f"is {state}")
            return True
        if state not in KNOWN | WAITED | LOST:
            self.logger.warning(f"Slurm job {number} is {state}, which is not known here: waiting")
        return False

    def report(self, job, what: str) -> None:
        log = [str(job.aux["slurm_logfile"])]
        self.report_job_error(job, msg=f"Slurm job {job.external_jobid} {what}. ", aux_logs=log)

    def give_back(self, seconds: float) -> None:
        """Let nodes be used again that failed so long ago, also by jobs that wait for others."""
        old = {node for node, at in self._failed_at.items() if time.monotonic() - at >= seconds}
        if not old:
            return
        self.logger.info(f"Nodes that failed may be used again: {', '.join(sorted(old))}")
        for node in old:
            del self._failed_at[node]
        self._failed_nodes -= old
        waiting = said("squeue", "-h", "-t", "PD", "-o", "%i", "--name", self.run_uuid).split()
        for job in waiting:
            said("scontrol", "update", f"JobId={job}", "ExcNodeList=")

    def run_job(self, job):
        """Submit a job; if Slurm does not take it now, later again, after those that wait too."""
        again = self._refused.pop(id(job), "")
        # After SIGTERM Snakemake finishes what runs; this job does not.
        if self._ending.is_set() or getattr(self.workflow.scheduler, "_user_kill", None):
            submitted = SubmittedJobInfo(job)
            return super()._report_job_error_threadsafe(submitted, "Not submitted: Snakemake ends.")
        self.cap(job)
        super().run_job(job)
        refused = self._refused.get(id(job), "")
        if not refused:
            self._pause = self._first_pause
            return None
        if refused == NO_SUCH_NODE:
            self._failed_at = dict.fromkeys(self._failed_nodes, 0)
            self.give_back(0)
        else:
            if refused != again:
                self.logger.info(f"{job.name} waits to be submitted, for Slurm says: {refused}")
            self._ending.wait(self._pause)
            self._pause = min(2 * self._pause, PAUSE_SECONDS)
        with suppress(RuntimeError):  # Snakemake ended meanwhile
            self._job_submission_executor.submit(self.run_job, job)
        return None

    def _report_job_error_threadsafe(self, job_info, msg):
        """The plugin's way to say that a job was not submitted: kept back if that will pass."""
        what = msg.partition("\n    sbatch call:")[0]
        passing = PASSING.search(what)
        if passing:
            self._refused[id(job_info.job)] = passing.group()
        elif NO_SUCH_NODE in what and self._failed_nodes:
            self._refused[id(job_info.job)] = NO_SUCH_NODE
        else:
            super()._report_job_error_threadsafe(job_info, msg)

    def cap(self, job) -> None:
        """Let a job ask for no more memory and time than its partition gives; a line says so."""
        asked = job.resources
        most = largest(asked.get("slurm_partition", ""), asked.get("gres", ""))
        for name, unit in (("mem_mb", "MB"), ("runtime", "minutes")):
            value, limit = asked.get(name), most[name]
            if isinstance(value, int) and limit and value > limit:
                self.logger.warning(
                    f"{job.name} asks for {value} {unit} ({name}), and gets {limit}: no node of its "
                    "partition gives more"
                )
                setattr(asked, name, limit)
                self._capped.setdefault(id(job), {})[name] = limit

    def get_job_args(self, job, **kwargs):
        """Also tell the job's own Snakemake what was capped: a rule may name its resources."""
        capped = [f"{name}={most}" for name, most in self._capped.get(id(job), {}).items()]
        limits = format_cli_arg("--resources", capped, skip=not capped)
        return f"{super().get_job_args(job, **kwargs)} {limits}"

    def cancel_jobs(self, active_jobs):
        """Cancel this run's jobs, those too that are submitted just now."""
        self.end()
        super().cancel_jobs(active_jobs)
        said("scancel", "--name", self.run_uuid)

    def shutdown(self):
        self.end()
        super().shutdown()

    def end(self) -> None:
        """Submit nothing more."""
        self._ending.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)


def said(*command: str) -> str:
    """What a command of Slurm's prints; nothing if it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def largest(partition: str, gres: str) -> dict[str, int]:
    """The most that a job may ask for in a partition (empty: the default one), 0 where unknown.

    `mem_mb` of a node that has the GPUs of `gres`, as in gpu:a100:4 (empty: any node), and
    `runtime` in minutes.
    """
    where = ["-p", partition] if partition else []
    kind = gres.rpartition(":")[0] if gres else ""
    sizes, limits = [0], [0]
    for line in said("sinfo", "-h", "-o", "%P|%m|%l|%G", *where).splitlines():
        name, memory, limit, has = line.split("|", 3)
        if (partition or name.endswith("*")) and kind in has:
            sizes.append(int(re.match(r"\d*", memory).group() or 0))
            limits.append(minutes(limit))
    # Of several partitions one without a limit takes any.
    return {"mem_mb": max(sizes), "runtime": 0 if 0 in limits[1:] else max(limits)}


def minutes(limit: str) -> int:
    """Minutes of Slurm's [days-]hours:minutes:seconds (also minutes:seconds); 0 without a limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return 0
    days, hours, rest, _ = (int(part or 0) for part in found.groups())
    return (24 * days + hours) * 60 + rest
