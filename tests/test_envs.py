"""envs/: the conda files and the container's definition say what the lock files say."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from conftest import REPO
from vecsweep.layout import STAGES

ENVS = REPO / "envs"
# What conda-forge calls otherwise than the package index.
CALLED = {"python-duckdb": "duckdb", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}


def locked(name="requirements.lock"):
    """Distribution -> version of a lock file."""
    lines = [line.split("#")[0].strip() for line in (ENVS / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), pairs
    return {name.lower().replace("_", "-"): version for name, version in pairs}


@pytest.mark.parametrize("name", sorted({stage.environment for stage in STAGES.values()}))
def test_conda_files_have_the_locks_versions(name):
    content = yaml.safe_load((ENVS / f"{name}.yaml").read_text())["dependencies"]
    pip = [line for part in content if isinstance(part, dict) for line in part["pip"]]
    conda = [line for line in content if isinstance(line, str)]
    found = dict(re.split("==?", line) for line in conda + pip)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert found.pop("python") == project["requires-python"].removeprefix(">=")
    found.pop("pip", None)
    lock = locked()
    assert found and all(
        lock[CALLED.get(name, name).lower().replace("_", "-")] == version
        for name, version in found.items()
    ), {name: lock.get(CALLED.get(name, name)) for name in found}


def sections(text):
    """Section -> its text, of a container's definition; "" is the header."""
    parts = re.split(r"^%(\w+)$", text, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2]))


def test_the_containers_definition():
    found = sections((ENVS / "vecsweep.def").read_text())
    assert re.search(r"^Bootstrap: docker\nFrom: python:3\.11-", found[""], re.MULTILINE)
    for name in ("post", "environment", "test"):
        done = subprocess.run(["bash", "-n"], input=found[name], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    # What it copies is there; what it installs is what it copied, and both locks.
    copied = dict(line.split() for line in found["files"].splitlines() if line.strip())
    assert all((REPO / source).exists() for source in copied)
    place = re.search(r"cd (\S+)", found["post"])[1]
    assert all(target == f"{place}/{source}" for source, target in copied.items())
    used = re.findall(r"-r (\S+)", found["post"])
    assert used == ["envs/requirements.lock", "envs/models.lock"]
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    named = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert named <= copied.keys()


def test_every_package_is_pinned_once():
    locks = [locked(name) for name in ("requirements.lock", "models.lock", "dev.lock")]
    names = [name for lock in locks for name in lock]
    assert len(names) == len({*names}) > 100


def closure(names):
    """What installing these brings with it, by the packages' own words; names as in a lock file."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for text in importlib.metadata.requires(name) or []:
                needed = Requirement(text)
                if not needed.marker or needed.marker.evaluate({"extra": ""}):
                    waiting.append(needed.name.lower().replace("_", "-"))
    return found


BLIND = """
import importlib, sys
from importlib.machinery import PathFinder

class Blind(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {hidden}:
            return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Blind
import vecsweep.__main__
for name in {stages}:
    importlib.import_module(f"vecsweep.stages.{{name}}")
"""


@pytest.mark.parametrize("name", sorted({stage.environment for stage in STAGES.values()}))
def test_conda_files_have_all_that_stages_import(name):
    content = yaml.safe_load((ENVS / f"{name}.yaml").read_text())["dependencies"]
    pip = [line for part in content if isinstance(part, dict) for line in part["pip"]]
    listed = [re.split("==?", line)[0] for line in [*content, *pip] if isinstance(line, str)]
    there = closure({CALLED.get(each, each) for each in listed} - {"python", "pip"})
    hidden = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {owner.lower().replace("_", "-") for owner in owners} & (there | {"vecsweep"})
    }
    assert "snakemake" in hidden
    stages = [stage.name for stage in STAGES.values() if stage.environment == name]
    code = BLIND.format(hidden=sorted(hidden), stages=stages)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
