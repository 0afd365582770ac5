"""What a shared machine or cluster asks for: several kinds of nodes, no network, several users."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from conftest import REPO, command
from vecsweep import Problem, resources
from vecsweep.__main__ import fetches
from vecsweep.layout import STAGES

EXAMPLE = REPO / "workflow" / "profiles" / "slurm" / "site.example.yaml"
MODEL = {"layers": 12, "dtype": "bfloat16", "offload": False, "source": "local", "path": "none"}
MODELS = {"small": MODEL | {"shards": 1}, "large": MODEL | {"shards": 8}}


def site(folder, **changes):
    """The site file of a folder, as read."""
    content = yaml.safe_load(EXAMPLE.read_text()) | changes
    (folder / "site.yaml").write_text(yaml.safe_dump(content))
    return resources.read_site(folder)


def asked(requests, stage, model):
    """The resources of a first try."""
    found = requests.of(STAGES[stage])
    wildcards = SimpleNamespace(model=model)
    found = {k: v(wildcards, 1) if callable(v) else v for k, v in found.items()}
    return {key: value for key, value in found.items() if value is not None}


def test_a_models_own_nodes(tmp_path):
    other = {"gpu_partition": "h100", "gpu_model": "h100", "gpus_per_node": 8, "max_hours": 48}
    found = site(tmp_path, gpu_partition="a40", models={"large": other}, slurm_extra="--qos=long")
    requests = resources.Requests(MODELS, found)
    small, large = (asked(requests, "states", model) for model in MODELS)
    names = ("slurm_partition", "gres", "nodes", "slurm_extra")
    assert [small[name] for name in names] == ["a40", "gpu:1", 1, "--qos=long"]
    assert [large[name] for name in names] == ["h100", "gpu:h100:8", 1, "--qos=long"]
    assert "mpi" not in large
    without = resources.Requests(MODELS, found | {"models": {}})
    assert asked(without, "states", "large")["nodes"] == 2  # of four GPUs each
    # One model on CPUs alone, beside others on GPUs.
    cpus = resources.Requests(MODELS, found | {"models": {"small": {"gpus_per_node": 0}}})
    assert not {"gres", "gpus", "nodes"} & asked(cpus, "states", "small").keys()
    assert "gres" in asked(cpus, "states", "large") and "gres" not in asked(cpus, "lens", "large")


def test_a_site_file_without_the_newer_keys(tmp_path):
    content = yaml.safe_load(EXAMPLE.read_text())
    del content["models"], content["slurm_extra"], content["container"]
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    assert resources.read_site(tmp_path) == site(tmp_path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"models": ["a"]}, "models: ['a'] has no keys"),
        ({"models": {"a": 3}}, "models > a: 3 has no keys"),
        ({"models": {"a": {"partition": "x"}}}, "models > a: unknown key 'partition'"),
        ({"models": {"a": {"gpus_per_node": "4"}}}, "models > a, gpus_per_node: '4' is no number"),
        ({"slurm_extra": 3}, "slurm_extra: 3 is no name"),
        ({"slurm_extras": None}, "unknown: slurm_extras (did you mean 'slurm_extra'?)"),
        ({"models": {"smal": {}}}, "'smal' is no model of the config (did you mean 'small'?)"),
    ],
)
def test_mistakes_in_a_site_file(tmp_path, changes, says):
    with pytest.raises(Problem) as error:
        resources.Requests(MODELS, site(tmp_path, **changes))
    assert says in str(error.value)


# A process that runs a command of vecsweep and then reaches for the hub.
REACH = """
import sys
from vecsweep.__main__ import main
main(sys.argv[1:])
import huggingface_hub
huggingface_hub.snapshot_download("owner/tiny", revision="0" * 40)
"""


def test_a_job_that_would_reach_out_says_so_at_once(tmp_path):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = command("stages", lens=[tmp_path / "none.parquet"], output=tmp_path / "out.parquet")
    done = subprocess.run(
        [sys.executable, "-c", REACH, *words],
        env=environment | {"PYTHONPATH": str(REPO / "workflow")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "outgoing traffic has been disabled" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_only_a_model_from_the_hub_may_reach_it(stage):
    for source in ("hub", "local", "package"):
        args = SimpleNamespace(command=stage, settings={"source": source})
        assert fetches(args) == (stage == "models" and source == "hub")
