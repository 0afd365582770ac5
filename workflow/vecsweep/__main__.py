"""The command `vecsweep`: a stage by hand, as the workflow's rules run it, or a tool."""

import argparse
import importlib
import json
import logging
import os
import sys
from pathlib import Path

from vecsweep import Problem, finished
from vecsweep.engine import importing
from vecsweep.files import PACKAGE, read_json
from vecsweep.layout import STAGES, Stage
from vecsweep.tools import TOOLS

# In the environment of processes that share a model, or of a node's launcher of them.
STARTED = {"RANK", "VECSWEEP_NODE"}


def main(argv: list[str] | None = None) -> int:
    """Run a stage or tool, or several stages with `--and` between them that share a loaded model.

    Bad input gives one line on stderr and exit code 1, no traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    quieten()
    ends = [i for i, word in enumerate(argv) if word == "--and"] + [len(argv)]
    starts = [0, *(end + 1 for end in ends)]
    cut = [argv[start:end] for start, end in zip(starts, ends)]
    jobs = [parsed(words) for words in cut]
    first = jobs[0]
    if not any(map(fetches, jobs)):
        # Before anything imports the hub's package, which reads them then: compute nodes often have
        # no network, and a job that reached out would say so after minutes of waiting.
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # Not in the processes that this one starts: they are to agree what is to be done.
    ours = not STARTED & os.environ.keys()
    long = [job for job in jobs if ours and finished.is_long(job)]
    try:
        back = [job for job in long if finished.brought_back(job)]
        left = [(words, job) for words, job in zip(cut, jobs) if job not in back]
        code = started(left) if left else 0
        for job in long if code == 0 else []:
            finished.remove(finished.table_of(job))
        return code
    except Problem as problem:
        print(f"vecsweep {first.command}: {problem}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def started(commands: list[tuple[list[str], argparse.Namespace]]) -> int:
    """Run commands, (words, parsed), here or in the processes that share their model; the exit code."""
    jobs = [job for _, job in commands]
    first = jobs[0]
    # Tools that measure shards start their processes themselves.
    shared = getattr(first, "shards", 1) > 1 or getattr(first, "offload", False)
    if first.command not in STAGES or not shared or "RANK" in os.environ:
        return run(jobs)
    from vecsweep.engine import launch, load

    slices = getattr(first, "slices", None)
    load.check(first.model, first.shards, first.engine, first.offload, slices)
    argv = [word for words, _ in commands for word in ("--and", *words)][1:]
    return launch.processes(first.shards, argv)


def run(jobs: list[argparse.Namespace]) -> int:
    """Run commands one after another; the exit code of the last, or 1 if one was refused.

    What is wrong with one job's input keeps no other one from its results. It is said at the end:
    a log's last line is why its job failed.
    """
    from vecsweep.engine import gpu

    loaded: dict = {}
    code = 0
    refused = []
    try:
        for number, args in enumerate(jobs, 1):
            args.loaded = loaded
            if len(jobs) > 1 and os.environ.get("RANK", "0") == "0":
                named = args.settings.get("task") or args.settings.get("name")
                print(f"{named} ({number} of {len(jobs)})", file=sys.stderr, flush=True)
            try:
                code = module_of(args.command).run(args) or code
                if finished.is_long(args) and os.environ.get("RANK", "0") == "0":
                    finished.finish(args, alone=len(jobs) == 1)
            except Problem as problem:
                if "RANK" in os.environ:  # the other processes are not to go on without this one
                    raise
                refused.append(f"vecsweep {args.command}: {problem}")
    finally:
        gpu.report()  # before the error: that is the log's last line
    for line in refused:
        print(line, file=sys.stderr)
    return 1 if refused else code


def fetches(args: argparse.Namespace) -> bool:
    """Whether a command may reach the hub: stage models of a model from there, tool preview."""
    if args.command == "models":
        return args.settings.get("source") == "hub"
    return args.command == "preview"


def quieten() -> None:
    """Keep out of logs what tells their readers nothing: loading bars, a machine without a GPU."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Packages that this process imports later say it as they are imported.
    said = "Setting accelerator to CPU"
    logging.getLogger("DeepSpeed").addFilter(lambda record: said not in record.getMessage())


def module_of(command: str):
    """The module that runs a command: only that one is imported."""
    folder = "stages" if command in STAGES else "tools"
    with importing():
        return importlib.import_module(f"vecsweep.{folder}.{command}")


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command; `rest` holds what a tool passes on to Snakemake."""
    width = max(map(len, (*STAGES, *TOOLS)))
    listed = [f"  {name:{width}}  {plain(stage.makes)}" for name, stage in STAGES.items()]
    tools = [f"  {name:{width}}  {what}" for name, what in TOOLS.items()]
    parser = argparse.ArgumentParser(
        prog="vecsweep",
        usage="vecsweep COMMAND ... (vecsweep COMMAND --help says what it takes)",
        # One screen: no line but of commands.
        epilog="\n".join(["stages, which the workflow runs:", *listed, "tools:", *tools]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(
        prog="vecsweep", dest="command", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name in (*STAGES, *TOOLS):
        known = commands.add_parser(
            name,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            description=f"Stage {name}: {plain(STAGES[name].makes)}." if name in STAGES else None,
        )
        if name not in argv[:1]:
            continue
        if name in STAGES:
            stage_arguments(known, STAGES[name])
        else:
            module = module_of(name)
            known.description = module.__doc__
            module.arguments(known)
    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        parser.error("no command; write one, vecsweep --help lists them")
    if rest and args.command != "resume":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    return args


def plain(text: str) -> str:
    return text.replace("`", "")


def stage_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    """The options of a stage, from its row: settings, what it reads and writes, how it runs."""
    if stage.name == "page":
        page_arguments(parser)
        return
    parser.add_argument(
        "--settings", type=settings, required=True, help="a file that the workflow noted, or JSON"
    )
    if stage.reads_task:
        parser.add_argument("--task", type=Path, required=True, help="the task's file")
    if stage.name == "figures":
        parser.add_argument("--database", type=Path, required=True, help="summary.duckdb")
    for option, what in stage.inputs.items():
        if stage.name == "summary":  # the grid says which: thousands of paths do not fit here
            continue
        several = "layers" in STAGES[what.stage].parts and "layers" not in stage.parts
        others = what.tasks or what.models
        parser.add_argument(
            f"--{option}",
            type=Path,
            nargs="*" if others else "+" if several else None,
            default=[] if others else None,
            required=not (others or what.optional),
            help=f"{what.output if what.output != 'output' else 'result'} of stage {what.stage}",
        )
    if stage.name == "summary":
        parser.add_argument("--results", type=Path, default=Path("results"), help="[results]")
        parser.add_argument("--memory", type=int, default=8000, help="MB it may take [8000]")
    for option, pattern in stage.outputs.items():
        parser.add_argument(
            f"--{option}", type=Path, required=True, help=f"to write, as {stage.name}/{pattern}"
        )
    if "layers" in stage.parts:
        parser.add_argument("--first", type=int, required=True, help="first layer, from 0")
        parser.add_argument("--last", type=int, required=True, help="last layer, inclusive")
    if stage.runs_model:
        parser.add_argument("--batch-tokens", type=int, required=True, help="in one forward")
        parser.add_argument("--shards", type=int, default=1, help="processes of the model [1]")
        parser.add_argument("--engine", default="auto", help="[auto], single, tensor or zero")
        parser.add_argument("--offload", action="store_true", help="zero: weights in host memory")


def page_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stage page: all are known where `make` ran, so that it is run without any."""
    captions = PACKAGE.parent / "report"
    for option, default, text in (
        ("database", "results/summary.duckdb", "database of stage summary"),
        ("figures", "results/figures", "folder of stage figures"),
        ("captions", captions, "folder of the figures' captions, NAME.rst"),
        ("output", "results/index.html", "to write"),
    ):
        parser.add_argument(
            f"--{option}", type=Path, default=Path(default), help=f"{text} [%(default)s]"
        )


class Settings(dict):
    """A stage's settings; a key that they lack is Problem."""

    def __missing__(self, key):
        raise Problem(
            f"its settings have no '{key}'; add it, or give the file that the workflow noted under "
            "results/settings"
        )


def settings(text: str) -> Settings:
    """A stage's settings, from JSON or a file of it."""
    try:
        return Settings(json.loads(text) if text.lstrip().startswith("{") else read_json(text))
    except (Problem, ValueError) as error:
        raise argparse.ArgumentTypeError(f"no settings in {text}: {error}") from None


if __name__ == "__main__":
    # A job's log has both streams: its last line is to be why it failed.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if "RANK" in os.environ:
        from vecsweep.engine import launch

        launch.as_process(main)
    sys.exit(main())
