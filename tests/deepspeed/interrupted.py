"""A long stage that every process of a sharded model leaves in the middle, and goes on with.

    torchrun --nproc-per-node 2 interrupted.py PLAN

PLAN is JSON: `whole` and `left`, the words of one stage that write to two files. The second is left
once two parts are written, in the log as `left`, and run again.
"""

import json
import sys
from pathlib import Path

import torch

from vecsweep.__main__ import module_of, parsed
from vecsweep.engine import edits, launch, parts, plans, sharded


class Left(Exception):
    pass


def run(words: list[str], loaded: dict, passes: int | None = None) -> int:
    """Run a stage; leave it after so many passes in all processes alike. How many there were."""
    args = parsed(words)
    args.loaded = loaded
    count = 0
    own = edits._resume

    def counted(*given):
        nonlocal count
        if count == passes:
            raise Left
        count += 1
        return own(*given)

    edits._resume = counted
    try:
        module_of(args.command).run(args)
    except Left:
        print("left", file=sys.stderr)
    finally:
        edits._resume = own
    return count


def main(plan: dict) -> int:
    torch.set_num_threads(1)
    parts.SECONDS, parts.SHARE, plans.DECODED_TOGETHER = 0, 1e9, 60
    loaded: dict = {}
    whole = run(plan["whole"], loaded)
    found = [whole, run(plan["left"], loaded, whole // 2), run(plan["left"], loaded)]
    Path(f"{plan['counts']}.{sharded.process()}").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    launch.as_process(lambda: main(plan))
