"""The workflow as a module of a user's own, and what the catalog of workflows asks for."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import yaml

import tiny
from conftest import REPO
from vecsweep import config, progress

SNAKEFILE = """
configfile: "mine.yaml"

module vecsweep:
    snakefile: "{code}/workflow/Snakefile"
    config: config["sweep"]
    {prefix}

use rule * from vecsweep as vecsweep_*

rule mine:
    default_target: True
    input: "{there}/summary.duckdb"
    output: "mine.txt"
    shell: "echo $PYTHONPATH > {{output}}"
"""


def test_the_display_of_a_run_in_another_workflow():
    """Rules there have a prefix, and are not all of this project."""
    stats = {"vecsweep_states": 2, "vecsweep_lens": 2, "vecsweep_states_m_towns": 1, "mine": 1}
    groups = {"m": {"states": [["towns", "verbs"]]}}
    run = progress.Run()
    with patch.object(progress.sweep, "GROUPS", groups):
        run.take(SimpleNamespace(event="run_info", stats=stats, levelno=0))
        run.plan()
    assert {stage: line.total for stage, line in run.lines.items()} == {
        "states": 4,
        "lens": 2,
        "mine": 1,
    }
    display = progress.Display()
    display.run = run
    for line in run.lines.values():
        line.done = line.total
    display.table()
    assert run.left(dict.fromkeys(run.lines, 1.0)) == 0


@pytest.fixture
def mine(tmp_path):
    """A user's folder with a model, a task and a config, and a runner of Snakemake in it."""
    tiny.save("gpt2", tmp_path / "weights" / "step1", seed=1)
    tiny.save("gpt2", tmp_path / "weights" / "step2", seed=2)
    tiny.write_task(tmp_path / "tasks", "towns")
    entry = tiny.config("gpt2", "weights") | {"revisions": ["step1", "step2"]}
    nothing = {name: {"tasks": []} for name in ("interventions", "ablations", "swaps")}
    sweep = {"models": {"a": entry}, "tasks": {"towns": {"file": "tasks/towns.yaml"}} | {}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"sweep": sweep | nothing}))
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPO / "workflow")}

    def run(prefix, *words):
        there = f"{prefix}/results" if prefix else "results"
        said = f'prefix: "{prefix}"' if prefix else ""
        text = SNAKEFILE.format(code=REPO, prefix=said, there=there)
        (tmp_path / "Snakefile").write_text(text)
        words = [*words, "--cores", "1", "--rerun-triggers", "mtime"]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *words],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    run.folder = tmp_path
    return run


def counted(output):
    """{rule: number of jobs} from the table of a dry run."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


@pytest.mark.parametrize("prefix", ["", "deep/er"])
def test_a_dry_run_of_a_users_workflow(mine, prefix):
    found = counted(mine(prefix, "-n"))
    stages = ("models", "prompts", "states", "lens", "stages", "attribution")
    assert found.items() >= {f"vecsweep_{stage}": 2 for stage in stages}.items()
    assert found.items() >= {"vecsweep_summary": 1, "mine": 1}.items()
    assert not [*mine.folder.rglob("results/settings/*/*.json")]  # a dry run leaves no trace


def test_a_job_of_a_users_workflow(mine):
    target = "deep/er/results/models/a@step2/model.json"
    mine("deep/er", target)
    assert (mine.folder / target).exists() and not (mine.folder / "results").exists()
    assert not (mine.folder / "deep" / "er" / "results" / "models" / "a@step1").exists()
    assert counted(mine("deep/er", "-n"))["vecsweep_models"] == 1  # the other one alone
    assert "Nothing to be done" in mine("deep/er", "-n", target)


def test_what_the_catalog_asks_for():
    """Its page on adding workflows: these files, and these keys of its own one."""
    content = config.read(REPO / ".snakemake-workflow-catalog.yml")
    usage = content["usage"]
    assert content.keys() == {"usage"}
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment"}
    flags = usage["mandatory-flags"]
    assert flags.keys() == {"desc", "flags"} and isinstance(flags["desc"], str)
    assert all(isinstance(flag, str) for flag in flags["flags"])
    deployment = usage["software-stack-deployment"]
    assert deployment.keys() == {"conda", "apptainer", "apptainer+conda", "report"}
    assert {type(value) for value in deployment.values()} == {bool} and deployment["conda"]
    assert (REPO / "workflow" / "Snakefile").is_file() and list(
        (REPO / "workflow/rules").glob("*.smk")
    )
    assert (REPO / "config" / "README.md").is_file()
    assert (REPO / "config" / "config.yaml").samefile(REPO / "config.yaml")
    words = (REPO / "README.md").read_text().lower()
    assert "snakemake" in words and "workflow" in words
    for path in re.findall(r"`(workflow/[\w/.]+)`", (REPO / "config" / "README.md").read_text()):
        assert (REPO / path).exists(), path
    assert Path(REPO / "workflow" / "rules" / "stages.smk").read_text().count("conda:") == 2
