"""Results of models, tasks and layer blocks that the config no longer has: list, ask, remove.

They are in no table any more, for the summary reads only what the config names. Only results whose
settings the workflow noted under results/settings/ are listed: what is anybody else's is left alone,
whatever its name.
"""

import re
import shutil
from pathlib import Path

from vecsweep import config
from vecsweep.finished import folder_of
from vecsweep.layout import ROWS, Cell
from vecsweep.sweep import Sweep, read_note


def arguments(parser):
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--yes", action="store_true", help="remove without a question")


def run(args):
    """List, ask, remove."""
    found = stale(Sweep(config.load(args.configfile), args.results))
    if not found:
        print(f"{args.results} holds only what {args.configfile} asks for")
        return
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
            return
    # The notes of settings last: by them the rest is found, should this be stopped halfway.
    notes = args.results / "settings"
    for path in sorted(found, key=lambda path: notes in path.parents):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    print("removed")


def stale(sweep: Sweep) -> list[Path]:
    """Files and folders that a stage made and the config does not ask for, widest first.

    A folder that holds nothing else is named as a whole.
    """
    results, found = Path(sweep.results), []
    for stage in ROWS:
        settings = results / "settings" / stage.name
        # Settings are one file for all blocks of a task, or of a model.
        named = [part for part in stage.parts if part != "layers"]
        noted = noted_cells(settings, len(named))
        wanted = {tuple(part for part in cell if part) for cell in sweep.cells(stage)}
        parts = [f"{{{part}}}" for part in stage.parts]
        made = [pattern for pattern in stage.outputs.values() if not pattern.endswith("/")]
        made += ["{model}/weights"] * (stage.name == "models")  # unpacked beside model.json
        # Of the slices' folder what is in it, with the file that Snakemake leaves there.
        in_folder = (r"slice-\d+.safetensors", ".snakemake_timestamp")
        made += [f"{{model}}/{name}" for name in in_folder if stage.name == "preshard"]
        # Parts of long stages are folders; of a result that is there they are leftovers.
        made += [str(folder_of(Path(name))) for name in stage.outputs.values() if stage.long]
        measured = ["/".join(parts) + ".tsv"]
        told = ["/".join(f"{{{part}}}" for part in named) + ".json"]
        found += stale_below(results / stage.name, made, wanted, noted)
        found += stale_below(results / "benchmarks" / stage.name, measured, wanted, noted)
        cells = {cell[: len(named)] for cell in wanted}
        found += stale_below(settings, told, cells, noted)
        for cell in sweep.cells(stage) if stage.long else []:
            output = Path([*sweep.outputs(stage, cell).values()][-1])
            found += [folder_of(output)] if output.exists() and folder_of(output).exists() else []
    return found


def noted_cells(folder: Path, parts: int) -> set[tuple]:
    """The (model, task) or (model,) whose settings are noted in a stage's folder."""
    found = set()
    for path in folder.glob("/".join(["*"] * parts) + ".json"):
        cell = path.relative_to(folder).with_suffix("").parts
        note = read_note(path) or {}
        named = tuple(note.get(part) for part in Cell._fields[:parts])
        if note.get("stage") == folder.name and named == cell:
            found.add(cell)
    return found


def stale_below(
    folder: Path, patterns: list[str], wanted: set[tuple], noted: set[tuple]
) -> list[Path]:
    """What is stale in one folder: what has the name of a noted cell that is not wanted."""
    found: list[Path] = []
    kept, length = [], len(next(iter(noted), ()))
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if any(above in found for above in path.parents):
            continue
        cell = cell_of(path.relative_to(folder).as_posix(), patterns)
        if cell is not None:
            stale = cell not in wanted and cell[:length] in noted
            (found if stale else kept).append(path)
    return widened(found, kept, folder)


def cell_of(name: str, patterns: list[str]) -> tuple | None:
    """The parts of a cell that a result's name has; None if no stage made it."""
    for pattern in patterns:
        parts = {part: rf"(?P<{part}>[A-Za-z0-9][A-Za-z0-9._@-]*)" for part in Cell._fields}
        parts["layers"] = r"(?P<layers>\d+-\d+)"
        if match := re.fullmatch(pattern.replace(".", r"\.").format(**parts), name):
            return match.groups()
    return None


def widened(found: list[Path], kept: list[Path], folder: Path) -> list[Path]:
    """The same, whole folders where all that is in them goes."""
    needed = {above for path in kept for above in path.parents}
    files, whole = set(found), []

    def goes(path):
        if not files.isdisjoint((path, *path.parents)):
            return True
        return path.is_dir() and not path.is_symlink() and any(path.iterdir())

    for path in found:
        above = path
        while above.parent != folder and above.parent not in needed:
            if not all(goes(inner) for inner in above.parent.rglob("*")):
                break
            above = above.parent
        if above not in whole:
            whole.append(above)
    return whole


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what links point to does not count."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
