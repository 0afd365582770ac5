"""What a site may have: several kinds of GPU, nodes without network, and nobody at a terminal."""

import shutil

import pytest
import yaml

from slurm.conftest import GUARD, SITE, Project, jobs, last_job
from test_models import REVISION, hub_cache

OWN = {"gpu_partition": "big", "gpu_model": "big", "slurm_extra": "--nodelist=node2"}
STATES = [f"results/states/{model}/towns.safetensors" for model in ("small", "large", "far")]


@pytest.fixture(scope="module")
def mixed(cluster, tmp_path_factory):
    """The states of three models: of one GPU kind, of the other, and from the hub's cache."""
    made = Project(tmp_path_factory.mktemp("mixed") / "vecsweep", cluster)
    site = made.folder / "workflow" / "profiles" / "slurm" / "site.yaml"
    site.write_text(yaml.safe_dump(SITE | {"models": {"large": OWN}}))
    made.add_model("small", "llama")
    made.add_model("large", "gptj")
    made.add_task("towns")
    hub = {"source": "hub", "id": "owner/tiny", "revision": REVISION}
    made.config["models"]["far"] = hub | {"layers": 3, "dtype": "float32"}
    hub_cache(made.folder / "weights" / "small", made.folder / "hub", "owner/tiny", REVISION)
    last = last_job(cluster)
    options = ("--logger", "vecsweep", "--slurm-init-seconds-before-status-checks", "2")
    changes = {"HF_HUB_CACHE": str(made.folder / "hub"), "HF_HUB_OFFLINE": "1"}
    try:
        process = made.start(*STATES, "--profile", "slurm", *options, **changes)
        assert process.wait(timeout=GUARD) == 0, made.output()[-6000:]
    finally:
        made.end()
    made.jobs = {(row["rule"], row["wildcards"]): row for row in jobs(cluster, last)}
    yield made
    shutil.rmtree(made.folder)


def test_a_model_takes_the_nodes_that_the_site_file_gives_it(mixed):
    small, large = (mixed.jobs["states", f"{model}_towns"] for model in ("small", "large"))
    assert (small["Partition"], large["Partition"]) == ("gpu", "big")
    assert large["NodeList"] == "node2"
    assert large["AllocTRES"].count("gres/gpu=1") == small["AllocTRES"].count("gres/gpu=1") == 1
    asked = mixed.cluster.run("scontrol", "show", "job", large["JobIDRaw"])
    assert "gpu:big:1" in asked, asked


def test_the_hub_is_reached_from_where_snakemake_runs_alone(mixed):
    assert all((mixed.folder / path).is_file() for path in STATES)
    rules = {rule for rule, _ in mixed.jobs}
    assert rules == {"models", "prompts", "states"}  # not models_hub
    assert ("models", "far") not in mixed.jobs and ("states", "far_towns") in mixed.jobs


def test_the_console_shows_a_line_a_stage(mixed):
    lines = mixed.output().splitlines()
    ends = [line for line in lines if line.split(":")[0] in ("models", "prompts", "states")]
    assert [line.split(" in ")[0] for line in ends] == [
        "models: 3 of 3",
        "prompts: 3 of 3",
        "states: 3 of 3",
    ], lines
    assert len(lines) < 12, lines
