"""What ten kills cost a stage that keeps parts, run by hand: python tests/killed.py COMMAND ...

The words are those of a `vecsweep` stage with `--output`, which must not be there. It runs once
undisturbed; then it is killed (-9) at moments drawn evenly over its work, and goes on each time. CPU
seconds (user and system) of all processes, the killed ones too; both tables must be the same bytes.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from vecsweep.finished import folder_of

KILLS = 10


def run(words, output, kill_at=None):
    """(CPU seconds of one process, those when its first part was there) unless killed before."""
    child = subprocess.Popen([sys.executable, "-m", "vecsweep", *words], stderr=subprocess.DEVNULL)
    process, parts = psutil.Process(child.pid), folder_of(output)
    start = None
    while process.status() != psutil.STATUS_ZOMBIE:
        used = sum(process.cpu_times()[:2])
        if start is None and parts.is_dir():
            start = used
        if kill_at is not None and used >= kill_at:
            process.kill()
            break
        time.sleep(0.005)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != (-9 if kill_at is not None else 0):
        sys.exit(f"vecsweep ended with {child.returncode} where it was not to")
    return used.ru_utime + used.ru_stime, start


def main(words):
    output = Path(words[words.index("--output") + 1])
    if output.exists() or folder_of(output).exists():
        sys.exit(f"{output} or its parts are there already; remove them")
    whole, start = run(words, output)
    table = output.read_bytes()
    output.unlink()
    print(f"undisturbed: {whole:.1f} CPU s, {start:.1f} of them until the first part", flush=True)
    draw = random.Random(0)
    moments = sorted(draw.uniform(0, whole - start) for _ in range(KILLS))
    spent = []
    for before, moment in zip([0, *moments], moments):
        # Of its work, less what an earlier one did.
        spent.append(run(words, output, start + moment - before)[0])
        print(f"killed after {spent[-1]:.1f} CPU s", flush=True)
    spent.append(run(words, output)[0])
    more = sum(spent) - whole
    print(
        f"with {KILLS} kills: {sum(spent):.1f} CPU s, {more / whole:.0%} more; the last {spent[-1]:.1f}"
    )
    print(f"beyond {KILLS} starts: {more - KILLS * start:.1f} CPU s")
    print("same bytes" if output.read_bytes() == table else "OTHER BYTES")
    return output.read_bytes() != table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
