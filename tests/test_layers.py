"""Stages above, engine below: who may import whom, and the table of stages as a graph."""

import ast
import subprocess
import sys

import pytest

import tiny
from conftest import REPO, command
from vecsweep.layout import ROWS, STAGES

PACKAGE = REPO / "workflow" / "vecsweep"
# Folder -> the parts of the package that its modules may read.
ALLOWED = {
    "engine": {"files", "finished", "engine", "series"},
    "methods": {"files", "engine", "tasks", "methods"},
    "stages": {
        *(
            "files",
            "finished",
            "layout",
            "sweep",
            "statistics",
            "bands",
            "invariants",
            "tables",
            "tasks",
            "engine",
            "methods",
        )
    },
    "figures": {"figures", "statistics"},
    "page": {"figures", "page", "tables"},
}


def imports(path):
    """The parts of the package that a module reads, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vecsweep."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "vecsweep":
            yield from (n.name for n in node.names if n.name not in ("Problem", "nearest"))


@pytest.mark.parametrize("folder", ALLOWED)
def test_who_reads_whom(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        # A stage lends nothing to another one; stages figures and page are doors to their folders.
        allowed = ALLOWED[folder] | ({path.stem} & {"figures", "page"})
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


MODEL_RUNS = {stage.name for stage in ROWS if stage.runs_model} | {"models"}
SLOW = {  # seconds to import: a property of a sweep of hundreds of jobs
    "torch": MODEL_RUNS | {"lens", "ovectors", "attribution", "tuned"},
    "transformers": MODEL_RUNS,
    "duckdb": {"stages", "summary", "figures", "page"},
    "matplotlib": {"figures"},
    "pyarrow": {*STAGES} - {"preshard", "states"},
}


def imported(code):
    """The slow packages that a fresh Python has imported after running `code`."""
    code += f"\nimport sys; print('imported', *(set({[*SLOW]}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {*done.stdout.splitlines()[-1].split()[1:]}


# What stages that may import it share is imported once, and they in forks of that process.
SHARED = {
    "transformers": "import transformers.models.gpt2.modeling_gpt2",
    "torch": "import torch, safetensors.torch",
    "": "",
}
FORKS = """
import os, sys
before = {slow} & sys.modules.keys()
for name in {names}:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        from vecsweep.__main__ import module_of

        module_of(name)
        print("stage", name, *({slow} & sys.modules.keys()), flush=True)
        os._exit(0)
print("before", *before)
"""


@pytest.mark.parametrize("shared", SHARED)
def test_a_stage_imports_only_what_it_needs(shared):
    may = {name: {p for p, stages in SLOW.items() if name in stages} for name in STAGES}
    names = [n for n in STAGES if shared == next((p for p in SHARED if p in may[n]), "")]
    code = SHARED[shared] + FORKS.format(slow={*SLOW}, names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    found = {line[1]: {*line[2:]} for line in lines if line[0] == "stage"}
    assert found.keys() == {*names} and all(found[name] <= may[name] for name in names), found
    (before,) = [{*line[1:]} for line in lines if line[0] == "before"]
    assert before <= {shared, "torch"} if shared == "transformers" else before <= {shared}


def test_what_snakemake_imports_is_quick():
    modules = "config, figures, layout, resources, sweep"
    assert not imported(f"import vecsweep.__main__\nfrom vecsweep import {modules}")


def test_prompts_are_made_without_torch(tiny_model, tmp_path):
    task = tiny.write_task(tmp_path, "towns")
    inputs = {"model": tiny_model("opt").description, "task": task, "output": tmp_path / "out"}
    words = command("prompts", **inputs, demonstrations=1, seed=0, max_prompts=6)
    assert imported(f"from vecsweep.__main__ import main; main({words})") == {"pyarrow"}
    assert (tmp_path / "out").exists()
