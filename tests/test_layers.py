"""Stages above, engine below: who may import whom, and the table of stages as a graph."""

import ast

import pytest

from conftest import REPO
from vecsweep.layout import ROWS, STAGES

PACKAGE = REPO / "workflow" / "vecsweep"
# Folder -> the parts of the package that its modules may read.
ALLOWED = {
    "engine": {"files", "engine"},
    "methods": {"files", "engine", "tasks", "methods"},
    "stages": {
        *("files", "layout", "sweep", "statistics", "bands", "tables", "tasks", "engine", "methods")
    },
    "figures": {"figures"},
}


def imports(path):
    """The parts of the package that a module reads, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vecsweep."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "vecsweep":
            yield from (name.name for name in node.names if name.name != "Problem")


@pytest.mark.parametrize("folder", ALLOWED)
def test_who_reads_whom(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        # A stage lends nothing to another one; stage figures is the door to its folder.
        allowed = ALLOWED[folder] | ({"figures"} if path.stem == "figures" else set())
        found = set(imports(path)) - {"__version__"}
        assert found <= allowed, path


def test_every_stage_has_a_module_and_reads_earlier_ones():
    for number, stage in enumerate(ROWS):
        assert (PACKAGE / "stages" / f"{stage.name}.py").is_file()
        earlier = {row.name for row in ROWS[:number]}
        assert {what.stage for what in stage.inputs.values()} <= earlier
        for what in stage.inputs.values():
            assert what.output in STAGES[what.stage].outputs
    modules = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
