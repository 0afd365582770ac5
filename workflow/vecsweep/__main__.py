"""`python -m vecsweep STAGE`: run one stage by hand, as the workflow's rules do."""

import argparse
import importlib
import os
import sys

from vecsweep import STEP_VERSIONS, Problem
from vecsweep.engine import gpu, launch

PLACES = {"plan": "vecsweep.tools.plan", "figures": "vecsweep.figures"}


def main(argv=None) -> int:
    """Run a stage, or several with `--and` between them that share a loaded model.

    Bad input gives one line on stderr and exit code 1, no traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    ends = [i for i, word in enumerate(argv) if word == "--and"] + [len(argv)]
    starts = [0, *(end + 1 for end in ends)]
    jobs = [parsed(argv[start:end]) for start, end in zip(starts, ends)]
    args, loaded = jobs[0][1], {}
    try:
        several = getattr(args, "shards", 1) > 1 or getattr(args, "offload", False)
        if several and "RANK" not in os.environ:
            from vecsweep.engine import load

            load.check(args.model, args.shards, args.engine, args.offload, args.ranks)
            return launch.ranks(args.shards, argv)
        try:
            for module, args in jobs:
                args.loaded = loaded
                module.run(args)
        finally:
            gpu.report()  # before the error: that is the log's last line
    except Problem as problem:
        print(f"vecsweep {args.stage}: {problem}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parsed(argv: list[str]):
    """(module, arguments) of one stage."""
    parser = argparse.ArgumentParser(prog="vecsweep", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name in (*STEP_VERSIONS, "plan"):
        # Only the stage that runs is imported: the start of a job is not free.
        stage = stages.add_parser(name)
        if name in argv[:1]:
            module = importlib.import_module(PLACES.get(name, f"vecsweep.stages.{name}"))
            stage.description = module.__doc__
            module.arguments(stage)
    args = parser.parse_args(argv)
    return module, args


if __name__ == "__main__":
    if "RANK" in os.environ:
        launch.as_rank(main)
    sys.exit(main())
