"""`vecsweep plan`: figures from sizes alone; for BLOOM-176B those measured on its shapes."""

import math
import re
import subprocess
import sys

import pytest
import yaml

import tiny
from conftest import REPO, main
from vecsweep import Problem, config
from vecsweep.layout import STAGES
from vecsweep.tools import plan

PAPER = REPO / "workflow" / "config" / "paper.yaml"
CONFIGS = [REPO / "config.yaml", *sorted((REPO / "workflow" / "config").glob("*.yaml"))]
MODELS = [(file, name) for file in CONFIGS for name in config.load(file)["models"]]


def settings_of(file, name):
    return config.load(file)["models"][name]


@pytest.fixture(scope="module")
def bloom():
    return plan.Facts("bloom-176b", settings_of(PAPER, "bloom-176b"))


def test_bloom(bloom):
    assert bloom.parameters == 176_247_271_424
    assert bloom.whole / 1e9 == pytest.approx(352.5, abs=0.05)
    assert bloom.whole / plan.GIB == pytest.approx(328.3, abs=0.05)
    assert bloom.block / plan.GIB == pytest.approx(4.59, abs=0.005)
    assert bloom.largest / plan.GIB == pytest.approx(6.70, abs=0.005)
    assert bloom.capture() == (3 * 70 + 1) * 14336 * 2
    assert bloom.capture() / 1e6 == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize(
    "shards, tensor, zero", [(8, 47.7, 41.0), (14, 30.2, 23.45), (16, 27.2, 20.5), (28, 18.4, 11.7)]
)
def test_bloom_on_each_process(bloom, shards, tensor, zero):
    assert bloom.held("tensor", shards) / plan.GIB == pytest.approx(tensor, abs=0.05)
    assert bloom.held("zero", shards) / plan.GIB == pytest.approx(zero, abs=0.05)


def test_bloom_needs_a_node_of_80_gb_or_two_of_40(bloom):
    settings = settings_of(PAPER, "bloom-176b")
    assert plan.suggested(settings, bloom, 80, 8) == 8 == settings["shards"]
    assert plan.suggested(settings, bloom, 48, 8) == 14
    assert plan.suggested(settings, bloom, 1, 8) is None
    # ZeRO-3 splits weights, not what a batch takes: with all heads, 95 GiB of 8192 tokens.
    zero = settings | {"engine": "zero"}
    assert plan.suggested(zero, bloom, 320, 8) == 2
    assert plan.suggested(zero, bloom, 240, 8) == 4
    assert plan.suggested(zero, bloom, 80, 8) is None
    assert plan.suggested(zero | {"batch_tokens": 2048}, bloom, 80, 8) == 8
    said = "No listed shard count fits devices of"
    assert (
        plan.none_fits(zero, bloom, 80, 8)
        == f"{said} 80 GB; with batch_tokens: 4096 shards: 24 does."
    )
    assert plan.none_fits(zero, bloom, 1, 8) == f"{said} 1 GB."


def test_bloom_in_host_memory(bloom, capsys, tmp_path):
    """With offload a device holds a tensor and its part: 6.70 x (1 + 1 / shards) GiB."""
    settings = settings_of(PAPER, "bloom-176b") | {"offload": True, "batch_tokens": 4096}
    assert bloom.on_device("zero", 8, True) / plan.GIB == pytest.approx(6.70 * 9 / 8, abs=0.01)
    assert bloom.on_device("tensor", 8, False) == bloom.held("tensor", 8)
    assert plan.engine_for(settings, bloom, 1) == plan.engine_for(settings, bloom, 8) == "zero"
    assert plan.suggested(settings, bloom, 80, 8) == 1
    with pytest.raises(Problem, match="engine: tensor cannot offload"):
        plan.engine_for(settings | {"engine": "tensor"}, bloom, 8)
    file = tmp_path / "config.yaml"
    text = PAPER.read_text()
    text = text.replace("batch_tokens: 8192", "batch_tokens: 4096")
    file.write_text(text.replace("    shards: 8", "    shards: 8\n    offload: true"))
    assert main(["plan", "bloom-176b", "--configfile", str(file)]) == 0
    text = capsys.readouterr().out
    assert "weights in host memory, 328.3 GiB a process; at most 13.4 GiB of them" in text
    (row,) = [line.split() for line in text.splitlines() if "(config)" in line]
    assert row[3] == "-" and row[4] == "41.0" and "yes" in row


@pytest.mark.parametrize("file, name", MODELS, ids=lambda value: getattr(value, "stem", value))
def test_sizes_of_every_model_in_the_configs(file, name):
    settings = settings_of(file, name)
    facts = plan.Facts(name, settings)
    assert len(facts.blocks) == settings["layers"]
    assert facts.parameters == plan.architecture(name, settings)["parameters"]
    # The formula for rules, against the parts added up.
    for shards in (2, 8):
        each = plan.node_memory(name, settings | {"shards": shards}) / shards - plan.PROCESS_MB
        # GPT-2 has no linear layers that tensor parallel could split.
        exact = facts.held("zero" if facts.config.model_type == "gpt2" else "tensor", shards)
        assert 1.19 * exact < each * 2**20 < 1.21 * exact + 2.3 * facts.largest


def test_shard_counts():
    assert plan.shard_counts(112, 8) == [1, 2, 4, 8, 14, 16, 24, 28, 32]
    assert plan.shard_counts(12, 4) == [1, 2, 4, 6, 8, 12, 16]
    # Every one spreads evenly over its nodes.
    for gpus in (1, 4, 8):
        assert all(n % math.ceil(n / gpus) == 0 for n in plan.shard_counts(96, gpus))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_local_folder(kind, tiny_model):
    stage = tiny_model(kind)
    settings = tiny.config(kind, stage.folder) | {"batch_tokens": 8, "shards": 1}
    facts = plan.Facts(kind, settings)
    assert facts.parameters == sum(p.numel() for p in stage.model.parameters())
    assert facts.held("single", 1) == 4 * facts.parameters
    assert plan.parameters_in(stage.folder) == facts.parameters
    assert plan.PROCESS_MB < plan.node_memory(kind, settings) < plan.PROCESS_MB + 5


def test_a_cached_snapshot_comes_before_the_table(tmp_path, monkeypatch):
    settings = settings_of(PAPER, "gpt2-small")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert plan.architecture("gpt2-small", settings)["n_embd"] == 768
    place = f"models--openai-community--gpt2/snapshots/{settings['revision']}"
    tiny.save("gpt2", tmp_path / place)
    assert plan.Facts("gpt2-small", settings).config.n_embd == 32


def test_without_a_home_there_is_no_cache(monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a uid of no name
    assert plan.folder_of(settings_of(PAPER, "gpt2-small")) is None


def test_a_model_of_unknown_size():
    settings = settings_of(PAPER, "gpt2-small") | {"id": "nobody/nothing"}
    assert plan.node_memory("new", settings) is None
    with pytest.raises(Problem, match="the sizes of 'new' are not known here.*architectures.yaml"):
        plan.Facts("new", settings)


def test_memory_of_more_shards():
    settings = settings_of(PAPER, "bloom-176b")
    one, two = (plan.node_memory("bloom-176b", settings | {"shards": n}) for n in (8, 16))
    assert 352_000 < one < 620_000 and two < 0.65 * one  # on one node, and on each of two


def test_memory_imports_no_torch():
    code = """
import sys
from vecsweep import config
from vecsweep.layout import STAGES
from vecsweep.tools import plan
settings = config.load(plan.Path(sys.argv[1]))["models"]["bloom-176b"]
assert plan.node_memory("bloom-176b", settings)
assert not {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(PAPER)], check=True)


def test_the_table(capsys):
    assert main(["plan", "bloom-176b", "--configfile", str(PAPER)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bloom-176b: bloom, 70 layers, d_model 14336, 112 heads")
    rows = {line.split()[0]: line.split()[1:] for line in lines if re.match(r" +\d", line)}
    assert rows["8"][:4] == ["1", "14", "47.7", "41.0"] and "suggested" in rows["8"]
    assert rows["28"][:4] == ["4", "4", "18.4", "11.7"]
    assert rows["32"][:3] == ["4", "-", "-"]  # 112 heads do not divide
    assert "-" == rows["1"][2] and "no" in rows["1"]
    text = "\n".join(lines)
    assert "parameters          176,247,271,424" in text and "352.5 GB" in text
    assert "6.0 MB a prompt" in text and "loading             176 s at 2 GB/s" in text
    assert "suggested           shards: 8, 1 node of 8 devices, engine tensor" in text


def test_options(capsys):
    arguments = ["plan", "bloom-176b", "--configfile", str(PAPER)]
    main([*arguments, "--gpu-memory", "1", "--disk-speed", "0.5", "--gpus-per-node", "4"])
    text = capsys.readouterr().out
    assert "No listed shard count fits devices of 1 GB" in text and "705 s at 0.5 GB/s" in text


def test_prompts_are_those_of_the_grid(tmp_path):
    tiny.write_task(tmp_path, "towns")
    grid = {
        "models": {"a": {"source": "local", "path": "a", "layers": 1, "dtype": "float32"}},
        "tasks": {"towns": {"file": str(tmp_path / "towns.yaml"), "max_prompts": 5}},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(grid))
    assert plan.prompt_count(config.load(file), "towns") == 2 * 5
    grid["tasks"]["towns"].pop("max_prompts")
    file.write_text(yaml.safe_dump(grid))
    assert plan.prompt_count(config.load(file), "towns") == 2 * len(tiny.CAPITALS)


def test_mistakes(refused, tmp_path):
    paper = ["--configfile", PAPER]
    assert "has no model 'bloom'; it has gpt2-small, " in refused(["plan", "bloom", *paper])
    assert "cannot read" in refused(["plan", "bloom", "--configfile", tmp_path / "none.yaml"])


def test_tasks_together_on_a_cluster():
    """Loading is about a fifth of a job: many short tasks, and a long one alone."""
    giant, small = {"dtype": "bfloat16", "shards": 8}, {"dtype": "float32", "shards": 1}
    bloom, gpt2 = 352.5e9, 0.5e9  # bytes

    def share(weights, settings, stage):
        count = plan.together(weights, settings, STAGES[stage])
        parameters = weights / plan.BYTES[settings["dtype"]]
        computing = plan.compute_seconds(parameters, 500 * count, settings["shards"])
        loading = plan.START + weights / 2e9
        return loading / (loading + computing)

    assert 0.19 < share(bloom, giant, "states") < 0.21
    assert plan.together(bloom, giant, STAGES["selection"]) == 1
    assert plan.together(gpt2, small, STAGES["ablations"]) == 1
    # Tables take seconds, whatever the model.
    assert plan.together(bloom, giant, STAGES["stages"]) == 12
    assert plan.together(gpt2, small, STAGES["stages"]) == 12
