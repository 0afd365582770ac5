"""Results of models, tasks and layer blocks that the config no longer has: list, ask, remove.

    python -m vecsweep.tools.prune [--configfile FILE] [--yes]

They are in no table any more, for the summary reads only what the config names.
"""

import argparse
import shutil
import sys
from pathlib import Path

import yaml

from vecsweep import Problem, config as vecsweep_config

# results/STAGE/MODEL/...; the rest of results/ belongs to the sweep as a whole.
BY_MODEL = ("models", "preshard", "groups")
BY_TASK = ("prompts", "states", "stages", "ovectors", "selection", "ablations")
BY_BLOCK = ("lens", "interventions")


def main(argv=None) -> int:
    """List, ask, remove; bad input gives one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="vecsweep.tools.prune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--yes", action="store_true", help="remove without a question")
    args = parser.parse_args(argv)
    try:
        config = vecsweep_config.checked(read_config(args.configfile))
    except Problem as problem:
        print(f"vecsweep prune: {problem}", file=sys.stderr)
        return 1
    found = stale(config, args.results)
    if not found:
        print(f"{args.results} holds only what {args.configfile} asks for")
        return 0
    sizes = [size(path) for path in found]
    for path, number in zip(found, sizes):
        print(f"{number / 1e6:10.1f} MB  {path}")
    print(f"{sum(sizes) / 1e6:10.1f} MB in all, not in {args.configfile}")
    if not args.yes:
        try:
            answer = input("Remove them? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return 0
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    print("removed")
    return 0


def read_config(path: Path) -> dict:
    """The config as written; Problem if it cannot be read."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Problem(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise Problem(f"{path} holds no keys")
    return config


def blocks(settings: dict) -> set[str]:
    """The first-last layers of a model's jobs, as in the names of their files."""
    layers, step = settings["layers"], settings["layers_per_job"]
    return {f"{first}-{min(first + step, layers) - 1}" for first in range(0, layers, step)}


def stale(config: dict, results: Path) -> list[Path]:
    """Files and folders of `results` that the config does not ask for, widest first.

    A folder whose model or task is gone is named as a whole. Benchmarks lie one folder deeper.
    """
    models, tasks = config["models"], set(config["tasks"])
    found = []
    for top in (results, results / "benchmarks"):
        for stage in (*BY_MODEL, *BY_TASK, *BY_BLOCK):
            for entry in sorted((top / stage).glob("*")):
                model = entry.name if entry.name in models else bare(entry)
                if model not in models or (stage == "preshard" and not models[model]["preshard"]):
                    found.append(entry)
                    continue
                if stage in BY_MODEL or not entry.is_dir():
                    continue
                for cell in sorted(entry.glob("*")):
                    task = cell.name if cell.name in tasks else bare(cell)
                    if task not in tasks:
                        found.append(cell)
                    elif stage in BY_BLOCK and cell.is_dir():
                        wanted = blocks(models[model])
                        files = sorted(cell.glob("*"))
                        found += [path for path in files if bare(path) not in wanted]
    return found


def bare(path: Path) -> str:
    """A file's name without its ending; a model's name may have dots, a folder has no ending."""
    return path.name if path.is_dir() else path.name.rpartition(".")[0]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what links point to does not count."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


if __name__ == "__main__":
    sys.exit(main())
