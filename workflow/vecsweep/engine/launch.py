"""Start one process a shard: on this node, or over the nodes of a Slurm job."""

import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsweep import Problem
from vecsweep.engine import signs

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MONITOR_SECONDS = 0.5  # how often the launcher looks at its processes


def processes(shards: int, argv: list[str]) -> int:
    """Run `python -m vecsweep ARGV` in `shards` processes; Problem if one of them fails.

    When one dies or hangs the others are stopped, and its own last line is the error. In a Slurm job
    of several nodes each gets an equal share, started by srun.
    """
    started = "VECSWEEP_NODE" in os.environ  # by _over_nodes, on one of the nodes
    nodes = int(os.environ["VECSWEEP_NODES"]) if started else len(_nodes_of_job())
    if shards % nodes:
        raise Problem(f"{shards} shards do not spread evenly over {nodes} nodes")
    if nodes > 1 and not started:
        return _over_nodes(argv)
    with tempfile.TemporaryDirectory() as folder:
        # DeepSpeed makes torch's compiler create this folder, which nothing removes.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor")
        return _on_this_node(shards, nodes, argv, folder)


def as_process(run: Callable[[], int]) -> None:
    """End one of the processes that `processes` started with the exit code of `run()`."""
    signs.give()
    import torch

    try:
        code = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the others may still need this one's part of a sum
    except Exception:
        traceback.print_exc()
        # Perhaps it is another one that died: its end has to be seen first.
        time.sleep(4 * MONITOR_SECONDS)
        code = 1
    signs.end()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the interpreter's own exit: gloo's threads still run, and now and then abort it.
    os._exit(code)


def _on_this_node(shards: int, nodes: int, argv: list[str], folder: str) -> int:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    node = int(os.environ.get("VECSWEEP_NODE", 0))
    static: dict[str, Any] = {"rdzv_backend": "static", "rdzv_configs": {"rank": node}}
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        run_id=os.environ.get("SLURM_JOB_ID", "vecsweep"),  # the same on every node
        nproc_per_node=shards // nodes,
        rdzv_endpoint=os.environ.get("VECSWEEP_HEAD", "127.0.0.1:0"),
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=folder, tee=Std.ERR),
        **(static if nodes > 1 else {"rdzv_backend": "c10d"}),
    )
    watch = signs.Watch(Path(folder, "signs"))
    try:
        elastic_launch(config, sys.executable)("-m", "vecsweep", *argv)
        return 0
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if watch.hung:
            raise Problem(watch.hung) from None
        raise Problem(f"process {number} {_reason(folder, failure)}") from None
    finally:
        watch.end()


def _reason(folder: str, failure: "ProcessFailure") -> str:
    if failure.exitcode < 0:
        return f"was killed by signal {-failure.exitcode}; the others were stopped"
    logs = sorted(Path(folder).rglob(f"{failure.local_rank}/stderr.log"))
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line]
    if not lines:
        return f"ended with exit code {failure.exitcode}"
    return f"failed: {lines[-1].partition(': ')[2] or lines[-1]}"


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _noted(pattern: str, record: str) -> str:
    """What a pattern's group finds in a record of Slurm's."""
    found = re.search(pattern, record)
    if not found:
        raise Problem(f"Slurm's record has no {pattern}: {record.partition(chr(10))[0]}")
    return found.group(1)


def _nodes_of_job() -> list[str]:
    """Names of the nodes of the Slurm job that this runs in; one name elsewhere."""
    if "SLURM_JOB_ID" not in os.environ:
        return ["this"]
    listed = _ask("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%N")
    return _ask("scontrol", "show", "hostnames", listed).splitlines()


def _over_nodes(argv: list[str]) -> int:
    """Run this command once a node by srun.

    Snakemake's jobs lose most SLURM_ variables: what srun needs comes from the job's record.
    """
    job, nodes = os.environ["SLURM_JOB_ID"], _nodes_of_job()
    node = _ask("scontrol", "show", "node", nodes[0])
    address = _noted(r"NodeAddr=(\S+)", node)
    cpus = _noted(r"CPUs/Task=(\d+)", _ask("scontrol", "show", "job", job))
    variables = {
        "VECSWEEP_NODES": str(len(nodes)),
        "VECSWEEP_HEAD": f"{address}:{20000 + int(job) % 20000}",
    }
    each = 'VECSWEEP_NODE=$SLURM_NODEID exec "$@"'
    # Without --kill-on-bad-exit a dead node leaves the others waiting.
    command = ["srun", "--kill-on-bad-exit=1", "-N", str(len(nodes)), "-n", str(len(nodes))]
    command += ["--ntasks-per-node=1", "-c", cpus]
    command += ["bash", "-c", each, "_", sys.executable, "-m", "vecsweep", *argv]
    return subprocess.run(command, env=os.environ | variables).returncode
