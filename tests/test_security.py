"""What docs/security.md says: nothing unpickles, no code of a model runs, no name leaves its folder."""

import ast
import hashlib
import json
import os
import re
import socket
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

import tiny
from conftest import REPO, describe
from vecsweep import Problem, config, files
from vecsweep.engine import folders, sources
from vecsweep.tools import prune

CODE = sorted((REPO / "workflow").rglob("*.py"))
RULES = sorted((REPO / "workflow").rglob("*.smk"))
# Modules that run what they read, and calls that do.
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "torch.load", "pandas.read_pickle", "pd.read_pickle"}
CALLS |= {"os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"}
# Of YAML: neither makes objects of the file's choice.
SAFE_LOADERS = {"UniqueKeys", "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"}
# Words that may stand in a call with these values alone.
ALLOWED = {"allow_pickle": {"False"}, "shell": {"False"}, "trust_remote_code": {"False"}}
ALLOWED["weights_only"] = {"True"}


def faults(text):
    """What of the above a program does: (line, word)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, n) for n in names if n.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in CALLS:
                yield node.lineno, called
            if called == "yaml.load" and ast.unparse(node.args[1]) not in SAFE_LOADERS:
                yield node.lineno, called
            for word in node.keywords:
                if ast.unparse(word.value) not in ALLOWED.get(word.arg, {ast.unparse(word.value)}):
                    yield node.lineno, word.arg
            if called.endswith(".from_pretrained") and "bench" not in called:
                given = {word.arg for word in node.keywords}
                if not given & {"trust_remote_code", None}:  # **options
                    yield node.lineno, called


BAD = (
    "import pickle\n",
    "from joblib import load\n",
    "torch.load('a')\n",
    "np.load('a', allow_pickle=True)\n",
    "subprocess.run('a', shell=True)\n",
    "AutoModel.from_pretrained('a', trust_remote_code=True)\n",
    "AutoModel.from_pretrained('a')\n",
    "yaml.load(text, yaml.Loader)\n",
    "eval('1')\n",
)


@pytest.mark.parametrize("text", BAD)
def test_the_scan_sees(text):
    assert [*faults(text)]


# Their folders are made by the tool itself, a line above.
OWN_FOLDERS = {"tools/bench_peers.py", "tools/memory.py"}


def test_no_code_of_ours_unpickles_or_runs_what_it_reads():
    found = {}
    for path in CODE:
        name = path.relative_to(REPO / "workflow").as_posix().removeprefix("vecsweep/")
        said = [*faults(path.read_text())]
        if said := [f for f in said if not (name in OWN_FOLDERS and "from_" in f[1])]:
            found[name] = said
    assert found == {} and len(CODE) > 80
    words = r"\b(pickle|eval|exec|system|popen)\b|torch\.load|^\s+(run|script|notebook):"
    assert not [path for path in RULES if re.search(words, path.read_text(), re.MULTILINE)]


EVIL = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model
from transformers import PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def evil(tmp_path):
    """A model's folder that asks for its own code: its path, and the file that the code would write."""
    folder, marker = tmp_path / "evil", tmp_path / "marker"
    tiny.save("llama", folder)
    (folder / "own.py").write_text(EVIL.format(marker=str(marker)))
    for file, classes in (
        ("config.json", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}),
    ):
        content = json.loads((folder / file).read_text())
        content |= {"auto_map": classes, "trust_remote_code": True}
        (folder / file).write_text(json.dumps(content))
    return folder, marker


def answered(monkeypatch):
    """Somebody who says yes to every question."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    read, write = os.pipe()
    os.write(write, b"y\n" * 9)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))


def test_code_beside_a_model_of_a_known_class_is_left_alone(evil, tmp_path, monkeypatch):
    from vecsweep.__main__ import main

    answered(monkeypatch)
    folder, marker = evil
    assert main(describe("llama", folder, tmp_path / "described").arguments) == 0
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_its_own_code_is_refused(evil, tmp_path, monkeypatch, refused, file):
    answered(monkeypatch)
    folder, marker = evil
    content = json.loads((folder / file).read_text())
    content |= {"model_type": "own_kind"} if file == "config.json" else {"tokenizer_class": "Own"}
    (folder / file).write_text(json.dumps(content))
    if file != "config.json":
        (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()) | {"auto_map": {}})
        )
    line = refused(describe("llama", folder, tmp_path / "described").arguments)
    assert str(folder) in line and not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["../up", "a/b", "/etc", "..", ".", "", "-rf", ".hidden", "a b", "a\n", "a\\b", "$(id)", "a;b"],
)
@pytest.mark.parametrize("section", ["models", "tasks"])
def test_names_that_would_leave_the_results(section, name):
    model = {"source": "local", "path": "x", "layers": 1, "dtype": "float32"}
    content = {"models": {"m": model}, "tasks": {"t": {}}}
    content[section] = {name: content[section].popitem()[1]}
    with pytest.raises(Problem, match="name"):
        config.checked(content)


@pytest.mark.parametrize("key, value", [("revision", "../../x"), ("id", "../up"), ("id", "a/../b")])
def test_a_hub_model_is_named_as_the_hub_names_it(key, value):
    model = {"source": "hub", "id": "a/b", "revision": "0" * 40, "layers": 1, "dtype": "float32"}
    with pytest.raises(Problem, match=key):
        config.checked({"models": {"m": model | {key: value}}, "tasks": {"t": {}}})


@pytest.mark.parametrize("inner", ["../../../etc/passwd", "a/../../x", "/etc/passwd"])
def test_a_file_outside_its_package_is_refused(inner):
    some = next(iter(metadata.distributions())).metadata["Name"]
    with pytest.raises(Problem, match="leaves its package"):
        sources.package_files("m", {"files": [f"{some}/{inner}"]})


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path):
    tiny.save("llama", tmp_path / "in", shard_size="20KB")
    index = tmp_path / "in" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    key, file = next(iter(content["weight_map"].items()))
    content["weight_map"][key] = f"../in/{file}"
    index.write_text(json.dumps(content))
    with pytest.raises(Problem, match="outside its folder"):
        folders.check("m", tmp_path / "in")


def test_a_link_in_the_place_of_a_result_is_replaced_not_followed(tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    own = f".result.json.{os.getpid()}@{socket.gethostname()}.tmp"  # left by a job of this number
    for name in ("result.json", own):
        (tmp_path / name).symlink_to(outside)
    files.write_json({"a": 1}, tmp_path / "result.json")
    assert outside.read_text() == "mine" and not (tmp_path / "result.json").is_symlink()
    assert files.read_json(tmp_path / "result.json") == {"a": 1}


def test_prune_removes_a_link_and_not_what_it_points_to(tmp_path, monkeypatch):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("mine")
    results = tmp_path / "results"
    for stage, name in (("states", "old"), ("models", "old")):
        (results / stage).mkdir(parents=True)
        (results / stage / name).symlink_to(tmp_path / "outside")
    files.write_json(
        {"stage": "models", "model": "old"}, results / "settings" / "models" / "old.json"
    )
    model = {"source": "local", "path": "x", "layers": 1, "dtype": "float32"}
    run = {"models": {"m": model}, "tasks": {"capitals": {}}}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    prune.run(SimpleNamespace(configfile=tmp_path / "run.yaml", results=results, yes=True))
    assert (tmp_path / "outside" / "kept").read_text() == "mine"


def test_the_page_says_which_tests_hold_it():
    """Every test that docs/security.md names is there."""
    text = (REPO / "docs" / "security.md").read_text()
    named = re.findall(r"`(test_\w+\.py)`", text)
    assert len(named) >= 5 and all((REPO / "tests" / name).is_file() for name in named)
    functions = re.findall(r"`(test_\w+)`", text)
    source = "".join(path.read_text() for path in (REPO / "tests").rglob("test_*.py"))
    assert all(f"def {name}(" in source for name in functions)


def test_sums_of_the_csv_tables(tmp_path):
    import duckdb

    from vecsweep.stages import summary

    with duckdb.connect() as connection:
        for path in (summary.SQL / "tables").glob("*.sql"):
            connection.execute(f"CREATE VIEW {path.stem} AS SELECT 1 AS a")
        summary.write_tables(connection, tmp_path / "tables")
    lines = (tmp_path / "tables" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == len([*(summary.SQL / "tables").glob("*.sql")])
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "tables" / name).read_bytes()).hexdigest() == digest
