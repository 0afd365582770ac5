"""Fixtures: tiny models, saved and described once a session, and a runner of stages."""

import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

# Before torch and transformers are imported: no network, and no more threads than tiny models use.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# MKL's sums depend on where in memory a matrix lies, but in this mode: "bit for bit" needs it.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import pytest
import torch
import transformers
import yaml

import tiny
from vecsweep.__main__ import main
from vecsweep.engine.decoding import decode
from vecsweep.engine.readout import Readout
from vecsweep.files import write_tensors
from vecsweep.layout import STAGES

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny matrices: threads only wait for each other

REPO = Path(__file__).parent.parent


def pytest_configure(config):
    config.addinivalue_line("markers", "real: runs the packaged real models (minutes)")
    config.addinivalue_line("markers", "gpu: compares a CUDA device with the CPU (make test-gpu)")


# What takes minutes or most of one; the rest take seconds a file.
LONG = ("test_real", "test_workflow", "test_sharded", "test_readme", "test_planted", "test_edits")
LONG += ("test_figures", "test_models", "test_silent", "test_page")


def pytest_collection_modifyitems(items):
    """The longest files first, where processes share them; the fast ones where one takes all.

    No GPU, no test of it.
    """
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    order = {name: place for place, name in enumerate(LONG)}
    sign = 1 if "PYTEST_XDIST_WORKER" in os.environ else -1
    items.sort(key=lambda item: sign * order.get(item.path.stem, len(LONG)))


CODE = ["Snakefile", "config.yaml", "workflow", "envs", "profiles"]


def copy_code(folder, *more):
    """The repository's root as a user has it, links and all, and the machine code that is there."""
    machine_code()
    for name in (*CODE, *more):
        if (REPO / name).is_dir() and not (REPO / name).is_symlink():
            shutil.copytree(REPO / name, folder / name, ignore=caches)
        else:
            shutil.copy(REPO / name, folder / name, follow_symlinks=False)


def caches(folder, names):
    """What a copy leaves out: Python's caches, but for Numba's, which take a while to make."""
    if Path(folder).name == "__pycache__":
        return [name for name in names if not name.endswith((".nbi", ".nbc"))]
    own = [] if Path(folder).name == "engine" else ["__pycache__"]
    return {*names} & {*own, "vecsweep.egg-info"}


@cache
def machine_code():
    """Have Numba compile what a sweep runs, once for all that copies the package."""
    tensors = {"norm.weight": torch.ones(4), "head.weight": torch.eye(4)}
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(tensors, Path(folder) / "readout", {"norm": "rms", "epsilon": "1e-6"})
        readout = Readout.load(Path(folder) / "readout")
        decode(readout, torch.eye(4), [torch.arange(4)[:, None]], 2)


HOW = ("batch_tokens", "shards", "engine", "offload", "slices", "first", "last")
NAMED = {
    **{name: ("task",) for name, stage in STAGES.items() if stage.reads_task},
    "figures": ("database",),
    "summary": ("results", "memory"),
}


def command(name, **options):
    """The arguments of a stage, from its options by name; what is none of them is a setting."""
    stage = STAGES[name]
    known = (*stage.inputs, *stage.outputs, *HOW, *NAMED.get(name, ()))
    settings = {} if name != "prompts" else {"task": Path(options["task"]).stem}
    given = options.get("settings", {})
    if name in ("models", "prompts"):  # it lies beside model.json
        described = options["description" if name == "models" else "model"]
        options = {"tokenizer": Path(described).with_name("tokenizer.json")} | options
        paths = [Path(path).with_name("tokenizer.json") for path in options.get("others", [])]
        options |= {"tokenizers": paths} if paths else {}
    settings |= json.loads(given) if isinstance(given, str) else given
    settings |= {key: options[key] for key in options if key not in (*known, "settings")}
    words = [name, "--settings", json.dumps(settings)]
    for option in options.keys() & known:
        value = options[option]
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{option.replace('_', '-')}", *map(str, values)]
    return words


def run_stage(name, **options):
    assert main(command(name, **options)) == 0


def describe(kind, folder, target, name=None, **config):
    """Stage models on a saved folder: its `.arguments`, and the paths of what it writes."""
    target = Path(target)
    paths = {
        "description": target / "model.json",
        "readout": target / "readout.safetensors",
        "vocabulary": target / "vocabulary.parquet",
        "tokenizer": target / "tokenizer.json",
    }
    settings = tiny.config(kind, folder, **config) | {"model": name or kind}
    arguments = command("models", settings=settings, **paths)
    return SimpleNamespace(arguments=arguments, folder=folder, **paths)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tiny_model(kind): the model, its folder and what stage models wrote of it, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = tiny.save(kind, folder / "source", bos=kind in ("opt", "gemma3_text"))
            stage = describe(kind, folder / "source", folder / "described")
            assert main(stage.arguments) == 0
            stage.model = model
            made[kind] = stage
        return made[kind]

    return get


@pytest.fixture(params=tiny.KINDS)
def family(request, tiny_model):
    """Each family's tiny model in turn, as `tiny_model` gives it; `.kind` names it."""
    stage = tiny_model(request.param)
    stage.kind = request.param
    return stage


@pytest.fixture(scope="module", params=["gemma3-270m", "smollm2-135m-instruct"])
def real_model(request, tmp_path_factory):
    """A packaged real model with the states and lens of six prompts; `.model` is a plain one.

    Stage models takes a minute or two: VECSWEEP_MODELS may name a folder that has its results.
    """
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    source = yaml.safe_load((REPO / "config.yaml").read_text())["models"][name]
    stage = describe(name, "", folder / "described", **source)
    if "VECSWEEP_MODELS" in os.environ:
        ready = Path(os.environ["VECSWEEP_MODELS"]) / name
        stage.description, stage.readout = ready / "model.json", ready / "readout.safetensors"
    else:
        assert main(stage.arguments) == 0
    stage.prompts, stage.states = folder / "capitals.parquet", folder / "capitals.safetensors"
    stage.lens = folder / "lens.parquet"
    task = REPO / "workflow" / "vecsweep" / "tasks" / "capitals.yaml"
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": 3})
    run_stage(
        "prompts", model=stage.description, task=task, settings=settings, output=stage.prompts
    )
    inputs = {"model": stage.description, "readout": stage.readout, "prompts": stage.prompts}
    run_stage("states", **inputs, batch_tokens=16, output=stage.states)
    last = source["layers"] - 1
    block = {"states": stage.states, "first": 0, "last": last}
    run_stage("lens", **inputs, **block, output=stage.lens)
    weights = stage.description.parent / json.loads(stage.description.read_text())["weights"]
    stage.model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    return stage


@pytest.fixture
def refused(capsys):
    """refused(arguments): the one line that a stage prints when it refuses its input."""

    def run(arguments):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "vecsweep" in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"vecsweep {arguments[0]}: ")
        return lines[0]

    return run
