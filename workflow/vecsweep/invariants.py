"""What must hold of all results, whatever the models do: a cell that breaks it is named.

Nothing is averaged over half a cell, or over another one's rows.
"""

from pathlib import Path

from vecsweep import Problem
from vecsweep.files import PACKAGE, check_tables, read_json
from vecsweep.layout import STAGES, Cell
from vecsweep.sweep import blocks

# Table of the summary -> (column that names the task, column that names the layer) of its files.
NAMED = {
    "vocabularies": (None, None),
    "prompts": ("task", None),
    "lens": ("task", "layer"),
    "stages": ("task", None),
    "ovectors": ("task", None),
    "interventions": ("ovector_task", "start_layer"),
    "heads": ("task", None),
    "ablations": ("task", None),
    "swaps": ("task", None),
    "patching": ("task", None),
    "relational": ("task", None),
    "attribution": ("task", None),
    "tuned": (None, "layer"),
}


def check_files(connection, files: dict[str, list[str]], grid: dict[str, list[int]]) -> None:
    """Problem unless every file is whole, and of the model, task and layers that its path names.

    `grid`: each model's number of layers, and of those in a block.
    """
    for path in files["models"]:
        found, model = read_json(path), Path(path).parent.name
        if (found.get("model"), found.get("layers")) != (model, grid[model][0]):
            raise Problem(f"{path} is not of {model} with {grid[model][0]} layers; {again(path)}")
    check_tables([path for table in NAMED for path in files[table]])
    for table, columns in NAMED.items():
        if files[table]:
            check_names(connection, files[table], *columns)


def check_names(connection, paths: list[str], task: str | None, layer: str | None) -> None:
    """Problem unless the rows of each file name what its path does."""
    columns = ", ".join(["model", task or "NULL", layer or "NULL"])
    query = (
        f"SELECT DISTINCT filename, {columns} FROM read_parquet(?, filename = true) ORDER BY ALL"
    )
    for path, *found in connection.execute(query, [paths]).fetchall():
        *above, last = Path(path).with_suffix("").parts
        # A task may be named like a block, as 2020-21: the stage's folder tells them apart.
        stage = STAGES.get(above[-3]) if len(above) > 2 else None
        cut = stage is not None and "layers" in stage.parts and is_block(last)
        block = [int(number) for number in last.split("-")] if cut else None
        named = (above + [last] * (block is None))[-2 if task else -1 :]
        if task is None:  # models/MODEL/vocabulary.parquet
            named = [above[-1]]
        same = found[: len(named)] == named
        if not same or (layer and block and not block[0] <= found[2] <= block[1]):
            said = ", ".join(str(value) for value in found if value is not None)
            raise Problem(f"{path} has rows of another cell ({said}); {again(path)}")


def is_block(name: str) -> bool:
    """Whether a file's name is a block of layers, as 0-11."""
    first, dash, last = name.partition("-")
    return bool(dash) and first.isdecimal() and last.isdecimal()


def check_rows(connection, results: Path, grid: dict[str, list[int]]) -> None:
    """Problem if a cell of the database breaks what `sql/invariants.sql` says."""
    query = (PACKAGE / "sql" / "invariants.sql").read_text("utf-8")
    for name, model, task, layer, said in connection.execute(f"{query} ORDER BY ALL").fetchall():
        stage = STAGES[name]
        cut = blocks(*grid[model]) if "layers" in stage.parts and model in grid else [""]
        found = [b for b in cut if layer is not None and within(layer, b)] or cut[:1]
        path = next(iter(stage.paths(Cell(model, task or "", found[0]), results).values()))
        what = f"{model}, {task}" if task else model
        raise Problem(f"{path} ({what}): {said}; {again(path)}")


def within(layer: int, block: str) -> bool:
    """Whether a layer is in a block, as 0-11; in one without a name it is."""
    first, _, last = block.partition("-")
    return not block or int(first) <= layer <= int(last)


def again(path) -> str:
    return f"delete {Path(path).name} there and run again"
