"""Start one process a shard: on this node, or over the nodes of a Slurm job."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from vecsweep import Problem


def ranks(shards: int, argv: list[str]) -> int:
    """Run `python -m vecsweep ARGV` in `shards` processes; Problem if one of them fails.

    When one rank dies the others are stopped, and its own last line is the error. Under Slurm
    with several nodes each gets an equal share, started by srun.
    """
    nodes = int(os.environ.get("VECSWEEP_NODES", 1))
    if nodes > 1 and "VECSWEEP_NODE" not in os.environ:
        return _over_nodes(nodes, argv)
    if shards % nodes:
        raise Problem(f"{shards} shards do not spread evenly over {nodes} nodes")
    with tempfile.TemporaryDirectory() as folder:
        # DeepSpeed makes torch's compiler create this folder, which nothing removes.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor")
        return _on_this_node(shards, nodes, argv, folder)


def _on_this_node(shards, nodes, argv, folder):
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    static = {"rdzv_backend": "static", "rdzv_configs": {"rank": int(os.environ.get("VECSWEEP_NODE", 0))}}
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=shards // nodes,
        rdzv_endpoint=os.environ.get("VECSWEEP_HEAD", "127.0.0.1:0"),
        max_restarts=0,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(log_dir=folder, tee=Std.ERR),
        **(static if nodes > 1 else {"rdzv_backend": "c10d"}),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vecsweep", *argv)
        return 0
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        raise Problem(f"rank {number} {_reason(folder, failure)}") from None


def _reason(folder, failure):
    if failure.exitcode < 0:
        return f"was killed by signal {-failure.exitcode}; the other ranks were stopped"
    logs = sorted(Path(folder).rglob(f"{failure.local_rank}/stderr.log"))
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line]
    return f"failed: {lines[-1].partition(': ')[2] or lines[-1]}" if lines else f"ended with exit code {failure.exitcode}"


def _over_nodes(nodes, argv):
    """Run this command once a node by srun; the head node's address comes from the allocation."""
    job = os.environ["SLURM_JOB_ID"]

    def ask(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    listed = ask("squeue", "-h", "-j", job, "-o", "%N")
    first = ask("scontrol", "show", "hostnames", listed).splitlines()[0]
    address = re.search(r"NodeAddr=(\S+)", ask("scontrol", "show", "node", first)).group(1)
    head = f"{address}:{20000 + int(job) % 20000}"
    each = 'VECSWEEP_NODE=$SLURM_NODEID exec "$@"'
    command = ["srun", "--kill-on-bad-exit=1", "-N", str(nodes), "-n", str(nodes)]
    command += ["--ntasks-per-node=1", "-c", os.environ.get("SLURM_CPUS_PER_TASK", "1")]
    command += ["bash", "-c", each, "_", sys.executable, "-m", "vecsweep", *argv]
    return subprocess.run(command, env=os.environ | {"VECSWEEP_HEAD": head}).returncode
