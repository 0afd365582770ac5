"""Go on after Snakemake was killed on a cluster: vecsweep resume [SNAKEMAKE OPTIONS].

Its Slurm jobs outlive it. They are cancelled first, for a new run would submit them again and two
jobs would write the same file; then the folder is unlocked and the sweep starts again.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from vecsweep import Problem

PREFIX = "vecsweep_"  # slurm-jobname-prefix of the profile; a random part follows


def arguments(parser):
    parser.add_argument("--cores", default="all", help="passed to Snakemake, as all others are")
    parser.add_argument("--profile", default="slurm", help="passed to Snakemake")


def run(args):
    """Cancel, unlock, run; `args.rest` are Snakemake's options."""
    alive = running_snakemakes(Path.cwd())
    if alive:
        listed = ", ".join(map(str, alive))
        raise Problem(f"Snakemake still runs in this folder as process {listed}; end it first")
    cancel_orphans(Path.cwd())
    unlock = ["snakemake", "--cores", "1", "--unlock", *configfile(args.rest)]
    done = subprocess.run(unlock, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        return done.returncode
    command = ["snakemake", "--cores", args.cores, "--profile", args.profile, *args.rest]
    os.execvp(command[0], command)


def configfile(options: list[str]) -> list[str]:
    """Of Snakemake's options those that say which config: unlocking reads it too."""
    names = ("--configfile", "--configfiles")
    return [
        part
        for i, part in enumerate(options)
        if part.startswith(names) or (i and options[i - 1] in names)
    ]


def running_snakemakes(folder: Path) -> list[int]:
    """Processes of this host that run Snakemake in `folder` and are none of its jobs."""
    found = []
    here = os.environ.get("SLURM_JOB_ID", "")  # where Snakemake itself runs inside a job
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if not any(Path(word.decode(errors="replace")).name == "snakemake" for word in words):
                continue
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            jobs = [text[13:] for text in variables if text.startswith("SLURM_JOB_ID=")]
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            in_folder = (process / "cwd").resolve() == folder.resolve()
            if in_folder and jobs in ([], [here]) and not zombie:
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def slurm(*command) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise Problem(f"{command[0]} is not on PATH; resume is for sweeps on Slurm") from error
    except subprocess.CalledProcessError as error:
        raise Problem(f"{command[0]} failed: {error.stderr.strip()}") from error


def orphans(folder: Path) -> list[str]:
    """Numbers of this user's jobs in the queue that a sweep in `folder` submitted."""
    rows = slurm("squeue", "-h", "--me", "-o", "%i|%j|%Z").splitlines()
    cells = [row.split("|", 2) for row in rows]
    return [
        job
        for job, name, where in cells
        if name.startswith(PREFIX) and Path(where).resolve() == folder.resolve()
    ]


def cancel_orphans(folder: Path, seconds: float = 120) -> None:
    """Cancel the sweep's jobs and wait until none is left, not even one that is ending."""
    jobs = orphans(folder)
    if not jobs:
        print("no Slurm job of this folder is left over", file=sys.stderr)
        return
    print(f"cancelling Slurm jobs left over: {' '.join(jobs)}", file=sys.stderr)
    slurm("scancel", *jobs)
    end = time.monotonic() + seconds
    while left := orphans(folder):
        if time.monotonic() > end:
            raise Problem(f"Slurm jobs {' '.join(left)} do not end; run this again later")
        time.sleep(0.5)
