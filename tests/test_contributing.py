"""What CONTRIBUTING.md says, done in a copy of the code: a row and a module, and nothing else."""

import re
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

import tiny
import warm
from conftest import REPO

TEXT = (REPO / "CONTRIBUTING.md").read_text()


def examples(section):
    """The blocks of Python in a section."""
    text = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """A copy of the code with a config of one tiny model and task; `run(*words)` gives the output."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("workflow", "envs"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=ignored, symlinks=True)
    for name in ("Snakefile", "profiles"):
        shutil.copy(REPO / name, tmp_path / name, follow_symlinks=False)
    tiny.write_task(tmp_path / "tasks", "towns")

    def run(*words):
        done = subprocess.run(
            ["python", "-m", *map(str, words)],
            cwd=tmp_path,
            env=warm.environment(PYTHONPATH=str(tmp_path / "workflow")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    copy = type("Copy", (), {"folder": tmp_path, "run": staticmethod(run)})
    return copy


def grid(copy, kind):
    tiny.save(kind, copy.folder / "weights")
    model = {"source": "local", "path": "weights", "dtype": "float32"}
    config = {
        "models": {"small": model | {"layers": tiny.layers_of(kind)}},
        "tasks": {"towns": {"file": "tasks/towns.yaml"}},
        "prompts": {"max_prompts": 3},
        "interventions": {"tasks": []},
        "ablations": {"tasks": []},
        "swaps": {"tasks": []},
    }
    (copy.folder / "config.yaml").write_text(yaml.safe_dump(config))


def edit(path, before, text):
    """Put text before the one place where `before` stands."""
    content = path.read_text()
    assert content.count(before) == 1
    path.write_text(content.replace(before, text + before))


def test_a_stage_is_a_row_and_a_module(copy):
    row, module = examples("A stage")
    package = copy.folder / "workflow" / "vecsweep"
    edit(package / "layout.py", '    Stage(\n        "ablations",', row)
    (package / "stages" / "norms.py").write_text(module)
    grid(copy, "gpt2")
    assert "mean norm of the residual stream" in copy.run("vecsweep", "--help")
    # It is a part of the sweep, and of nothing else's.
    plan = copy.run("snakemake", "--cores", "1", "--dry-run")
    assert "small: norms of towns" in plan and "summary" in plan
    goal = "results/norms/small/towns.parquet"
    copy.run("snakemake", "--cores", "1", "--", goal)
    states = load_file(copy.folder / "results" / "states" / "small" / "towns.safetensors")
    rows = pq.read_table(copy.folder / goal).to_pylist()
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for row in rows:
        norm = states[f"resid_post.0{row['layer']}"].norm(dim=-1).mean()
        assert row["norm"] == pytest.approx(norm.item(), rel=1e-6)
    heads, *table = copy.run("vecsweep", "status").splitlines()
    cells = next(line for line in table if " towns " in line)
    assert cells[heads.index("norms") :].split()[0] == "done"
    again = copy.run("snakemake", "--cores", "1", "--", goal)
    assert "Nothing to be done" in again


def test_a_family_is_a_row(copy):
    (row,) = examples("A model family")
    families = copy.folder / "workflow" / "vecsweep" / "engine" / "families.py"
    edit(families, '    "opt": Family(', row)
    grid(copy, "exaone4")
    goal = "results/stages/small/towns.parquet"
    done = copy.run("snakemake", "--cores", "1", "--", goal)
    assert "Traceback" not in done and pq.read_table(copy.folder / goal).num_rows == 6
