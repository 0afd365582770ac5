"""What is installed, and how it is called: a wheel away from the checkout, every command's help."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import REPO
from vecsweep.__main__ import main
from vecsweep.layout import STAGES
from vecsweep.tools import TOOLS

PAGE = REPO / "workflow" / "vecsweep" / "page"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that a wheel of the checkout was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves files beside the sources.
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(
        REPO / "workflow" / "vecsweep", folder / "workflow" / "vecsweep", ignore=ignored
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, folder / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, folder], check=True)
    (wheel,) = folder.glob("vecsweep-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def away(site, folder, *words):
    """Run a Python command elsewhere, on the installed package; what it prints."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_works_away_from_the_checkout(installed, tmp_path):
    where = "import vecsweep; print(vecsweep.__file__)"
    assert away(installed, tmp_path, "-c", where).startswith(str(installed))
    assert "states" in away(installed, tmp_path, "-m", "vecsweep", "--help")
    assets = {path.name for path in PAGE.iterdir() if path.suffix != ".py"} - {"__pycache__"}
    assert assets and all((installed / "vecsweep" / "page" / name).is_file() for name in assets)
    paper = REPO / "workflow" / "config" / "paper.yaml"
    plan = away(installed, tmp_path, "-m", "vecsweep", "plan", "bloom-176b", "--configfile", paper)
    assert "176,247,271,424" in plan and "suggested           shards: 8" in plan
    readers = """
import torch
from vecsweep import files, tables
rows = [{"model": "m", "token_id": 0, "token": "a"}]
tables.write("vocabulary", rows, "x.parquet")
files.write_tensors({"a": torch.ones(2)}, "x.safetensors")
print(tables.read("vocabulary", "x.parquet").to_pylist() == rows, files.Tensors("x.safetensors")["a"])
"""
    assert away(installed, tmp_path, "-c", readers).split() == ["True", "tensor([1.,", "1.])"]


@pytest.mark.parametrize("name", [*STAGES, *TOOLS])
def test_every_command_has_help_and_stands_in_the_docs(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: vecsweep {name}") and len(text.splitlines()) > 5
    assert f"| {name} |" in README or f"`vecsweep {name}` |" in README


README = (REPO / "README.md").read_text()


def test_the_first_screen(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    for stage in STAGES.values():
        assert any(line.split()[:1] == [stage.name] for line in lines)
        assert f"| {stage.name} | {stage.makes} |" in README
    for name, what in TOOLS.items():
        assert any(line.split() == [name, *what.split()] for line in lines)


def test_help_needs_no_torch():
    code = "import sys; from vecsweep.__main__ import parsed; parsed(sys.argv[1:])"
    for words in (["--help"], ["lens", "--help"], ["status", "--help"], ["plan", "--help"]):
        command = [sys.executable, "-X", "importtime", "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert done.returncode == 0 and not loaded & {"torch", "transformers", "pandas"}, words
