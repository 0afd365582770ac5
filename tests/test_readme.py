"""The README's walk-through: its blocks as they stand, from a hub cache and a folder, to the query."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tiny
from conftest import REPO
from test_formats import LRE
from test_models import hub_cache

README = (REPO / "README.md").read_text()
BLOCKS = {
    language: re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    for language in ("yaml", "python")
}
YOUNG = {
    **{"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal"},
    **{"goat": "kid", "pig": "piglet", "duck": "duckling", "goose": "gosling", "bear": "cub"},
    **{"swan": "cygnet", "deer": "fawn", "frog": "tadpole", "eagle": "eaglet", "owl": "owlet"},
}
FEW = {"ablations": {"tasks": []}, "swaps": {"tasks": []}, "summary": {"resamples": 100}}


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A user's folder after the walk: (folder, environment)."""
    folder = tmp_path_factory.mktemp("user")
    models, relation, tasks = map(yaml.safe_load, BLOCKS["yaml"])
    (folder / "my").mkdir()
    (folder / "my" / "relation.yaml").write_text(BLOCKS["yaml"][1])
    rows = ["argument,answer", *(f"{a},{b}" for a, b in YOUNG.items())]
    (folder / "my" / relation["data"]).write_text("\n".join(rows) + "\n")
    (folder / "my" / "land_capital.json").write_text(json.dumps(LRE))
    # The models that the blocks name are too large: tiny ones of other sizes lie in their places.
    (hub,) = [m for m in models["models"].values() if m["source"] == "hub"]
    tiny.save("qwen2", folder / "source", seed=1)
    hub_cache(folder / "source", folder / "cache", hub["id"], hub["revision"])
    for model in models["models"].values():
        if model["source"] == "local":
            tiny.save("llama", folder / model["path"])
        model["layers"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(models | tasks | FEW))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = ["snakemake", "--logger", "vecsweep", "--cores", "2", "--snakefile"]
    command += [REPO / "Snakefile", "--directory", folder, "--configfile", folder / "config.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout[-3000:] + done.stderr[-3000:])
    return folder, environment


def test_the_walk_ends_in_the_page_and_the_query(walked):
    folder, environment = walked
    assert (folder / "results" / "index.html").is_file()
    (block,) = BLOCKS["python"]
    query = [sys.executable, "-c", block]
    done = subprocess.run(query, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("qwen2.5-1.5b", "mine", "young", "land_capital"):
        assert name in done.stdout


def test_the_walks_prompts_are_shown(walked):
    folder, environment = walked
    words = [sys.executable, "-m", "vecsweep", "preview", "mine", "young"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"A young \w+ is called a", done.stdout)


def test_what_the_readme_names_is_there():
    places = re.findall(r"[`(]((?:workflow|docs|envs|results)/[\w./-]+\w)", README)
    assert len(places) > 10
    assert not [p for p in places if "NAME" not in p and not made(p) and not (REPO / p).exists()]


def made(place):
    """By a sweep, or by the user."""
    return place.startswith("results/") or place.endswith("site.yaml")
