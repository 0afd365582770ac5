"""Two hundred bad inputs and more: each gives one clear line, and leaves nothing half-written.

A line says where, what and how to mend it. Cases are made where a property stands behind them: each
key of a schema with each kind of wrong value, each kind of file with each kind of fault.
"""

import copy
import ctypes
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
import warm
from conftest import REPO, command, describe
from vecsweep import Problem, config, resources, tasks
from vecsweep.__main__ import main
from vecsweep.engine import folders
from vecsweep.stages.prompts import build
from vecsweep.sweep import Sweep
from vecsweep.tasks import checks

LOCAL = {"source": "local", "path": "weights", "layers": 3, "dtype": "float32"}
BASE = {"models": {"m": LOCAL}, "tasks": {"capitals": {}, "us_capitals": {}}}
# How to mend it.
CURE = re.compile(r"; [a-z]|: add it|did you mean|allowed are")


class Case(NamedTuple):
    """An input, and the words that its line must have; `run(folder)` meets it."""

    name: str
    run: Callable
    says: tuple[str, ...]


def edited(path, value, base=BASE):
    """The config with the value at a path of keys set."""
    changed = copy.deepcopy(base)
    inner = changed
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return changed


def checked(path, value):
    return lambda folder: config.checked(edited(path, value))


def wrong(rules):
    """(what, value) that a key must not have, by its rules in a schema."""
    kinds = rules.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "oneOf" in rules:
        yield from (("word", "many"), ("zero", 0), ("half", 1.5))
    if "enum" in rules:
        yield from (("misspelt", rules["enum"][-1][:-1]), ("number", 7))
    if "integer" in kinds:
        yield from (("word", "x"), ("half", 2.5), ("nan", math.nan), ("true", True))
    if "number" in kinds:
        yield from (("word", "1e-3"), ("nan", math.nan), ("inf", math.inf), ("true", True))
    for limit, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
        if limit in rules:
            yield limit, rules[limit] + step
    if "string" in kinds:
        yield from (("number", 5), ("nothing", ""), ("list", ["x"]))
    if "boolean" in kinds:
        yield from (("word", "maybe"), ("number", 1))
    if "array" in kinds:
        yield ("names" if "object" in kinds else "word"), "capitals"
        yield "number-in-it", [5]
        inner = rules["items"]
        one = inner["enum"][0] if "enum" in inner else 2.0 if inner["type"] == "number" else "a/b"
        if rules.get("uniqueItems"):
            yield "twice", [one, one]
        if "minItems" in rules:
            yield "none", []
        if inner.get("type") == "number":
            yield from (("nan-in-it", [math.nan]), ("inf-in-it", [1.0, -math.inf]), ("zero", [0]))
    if "object" in kinds:
        yield from (("word", "x"), ("list", ["x"]), ("null", None))


def config_keys():
    """Each key of the config with each kind of wrong value."""
    rules = config.schema()["properties"]
    places = [
        (("models", "m", key), r)
        for key, r in rules["models"]["additionalProperties"]["properties"].items()
    ]
    places += [
        (("tasks", "capitals", key), r)
        for key, r in rules["tasks"]["additionalProperties"]["properties"].items()
    ]
    for section, inner in rules.items():
        places.append(((section,), inner))
        places += [((section, key), r) for key, r in inner.get("properties", {}).items()]
    for path, inner in places:
        where = "config, " + " > ".join(path)
        for what, value in wrong(inner):
            if (what, value) == ("number-in-it", [5]) and inner["items"].get("type") == "number":
                continue
            yield Case(f"{'.'.join(path)}-{what}", checked(path, value), (where,))
        name = path[-1]
        if len(name) < 4:
            continue
        typo = name[:-2] + name[-1] + name[-2]
        if typo == name or name == "revisions":  # which is nearer to `revision` then
            typo = name + "x"
        place = " > ".join(path[:-1]) or "top level"
        says = (f"config, {place}: unknown key '{typo}'", f"did you mean '{name}'")
        yield Case(f"{'.'.join(path)}-typo", checked((*path[:-1], typo), 1), says)


HUB = {"source": "hub", "id": "owner/name", "revision": "0" * 40, "layers": 3, "dtype": "float32"}
PACKED = {
    "source": "package",
    "files": ["a/b"],
    "sha256": "0" * 64,
    "layers": 3,
    "dtype": "float32",
}
CONFIGS = [
    ("name-with-space", ("models", "a b"), LOCAL, "the name 'a b'"),
    ("name-number", ("tasks", 2024), {}, "the name 2024"),
    ("names-but-for-case", ("models", "M"), LOCAL, "'m' and 'M' would share their results"),
    ("path-of-the-hub", ("models", "m"), HUB | {"path": "x"}, "'path' says nothing with source: hub"),
    ("revision-of-local", ("models", "m"), LOCAL | {"revision": "0" * 40}, "'revision' says nothing"),
    ("branch", ("models", "m"), HUB | {"revision": "main"}, "the full commit hash"),
    ("address", ("models", "m"), HUB | {"id": "https://hub/owner/name"}, "owner/name"),
    ("no-path", ("models", "m"), {k: v for k, v in LOCAL.items() if k != "path"}, "'path' is a required"),
    ("no-sha256", ("models", "m"), {k: v for k, v in PACKED.items() if k != "sha256"}, "'sha256' is a required"),
    ("file-without-package", ("models", "m"), PACKED | {"files": ["x.gguf"]}, "models > m > files"),
    ("preshard", ("models", "m"), LOCAL | {"preshard": True}, "needs shards: 2 or more"),
    ("single-offload", ("models", "m"), LOCAL | {"engine": "single", "offload": True}, "cannot offload"),
    ("single-shards", ("models", "m"), LOCAL | {"engine": "single", "shards": 2}, "takes one process"),
    ("zero-alone", ("models", "m"), LOCAL | {"engine": "zero"}, "engine: zero needs shards"),
    ("twin-not-ablated", ("ablations",), {"tasks": ["capitals"], "twins": ["us_capitals"]}, "not in ablations > tasks"),
    ("one-rival", ("interventions", "rivals"), ["capitals"], "is too short; name at least two"),
    ("three-rivals", ("interventions", "rivals"), ["a", "b", "c"], "is too long; name at most two"),
    ("no-scale", ("interventions", "scales"), [], "name at least one"),
    ("rival", ("interventions", "rivals"), ["capitals", "us_capital"], "did you mean 'us_capitals'?"),
    *(
        (f"{listed}-unknown", listed.split("."), ["capitols"], "'capitols' is in a list, but not under tasks (did you mean 'capitals'?)")
        for listed in config.LISTS
    ),
]  # fmt: skip


def swept(content):
    return lambda folder: Sweep(config.checked(content)).loaded


GRIDS = [
    ("packaged-name", edited(("tasks", "capitols"), {}), "tasks > capitols", "did you mean 'capitals'?"),
    ("100-demonstrations", edited(("prompts", "demonstrations"), 100), "demonstrations: 100", "has only 49"),
    ("tuned-few", edited(("tuned", "tasks"), ["capitals"], edited(("prompts", "max_prompts"), 9)), "tuned > tasks: capitals have at most 9 train pairs", "10 are needed"),
]  # fmt: skip


# Files: each kind with each kind of fault


def missing(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: 9 if path.suffix == ".csv" else path.stat().st_size // 2])


def binary(path):
    path.write_bytes(bytes(range(256)) * 4)


def link_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def utf_16(path):
    path.write_text(path.read_text(), encoding="utf-16")


def latin_1(path):
    path.write_bytes(path.read_bytes().replace(b"a", "é".encode("latin-1")))


def nuls(path):
    path.write_bytes(path.read_bytes().replace(b"e", b"\0"))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def deep(path):
    path.write_text("[" * 100_000)


def unreadable(path):
    path.chmod(0)


FAULTS = [missing, a_folder, empty, cut, binary, link_loop, utf_16, latin_1, nuls, pipe, deep, unreadable]  # fmt: skip
WORDS = ": a b\none two three four\nfive six seven eight\n"


def config_file(folder):
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE) + "x: {a: [1,\n")
    return folder / "run.yaml", lambda: config.load(folder / "run.yaml")


def site_file(folder):
    shutil.copy(REPO / "workflow" / "profiles" / "slurm" / "site.example.yaml", folder)
    path = folder / "site.example.yaml"
    return path, lambda: resources.read_site(folder)


def task_file(folder):
    path = tiny.write_task(folder, "towns")
    return path, lambda: tasks.load(path)


def csv_file(folder):
    path = tiny.write_task(folder, "towns")
    return folder / "towns.csv", lambda: tasks.load(path)


def json_file(folder):
    path = folder / "lands.json"
    path.write_text(json.dumps([{"input": f"a{i}", "output": f"b{i}"} for i in range(5)]))
    return path, lambda: tasks.load(path)


def analogies_file(folder):
    path = folder / "words.txt"
    path.write_text(WORDS)
    return path, lambda: tasks.load(f"{path}#a b")


WEIGHTS = Path("weights")


def model_file(name):
    def made(folder):
        target = folder / "weights"
        shutil.copytree(WEIGHTS, target)
        path = target / name
        if name.endswith("index.json"):
            keys = folders.tensor_shapes("x", target)
            path.write_text(json.dumps({"weight_map": dict.fromkeys(keys, "model.safetensors")}))
        return path, lambda: folders.check("m", target, 3)

    return made


FILES = {
    "config": config_file,
    "site": site_file,
    "task": task_file,
    "csv": csv_file,
    "json": json_file,
    "analogies": analogies_file,
} | {name: model_file(name) for name in (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors.index.json",
)}  # fmt: skip
# No fault of that file, or none that shows: half of a text of lines is a text of lines.
FINE = {
    ("site", "cut"), ("analogies", "latin_1"), ("tokenizer_config.json", "missing"),
    ("model.safetensors.index.json", "missing"), ("model.safetensors", "deep"), ("config", "nuls"),
    ("analogies", "cut"), ("config", "cut"), ("json", "nuls"), ("model.safetensors", "utf_16"),
}  # fmt: skip


def file_cases():
    for kind, make in FILES.items():
        for fault in FAULTS:
            if (kind, fault.__name__) in FINE:
                continue

            def run(folder, make=make, fault=fault):
                path, read = make(folder)
                fault(path)
                return read

            yield Case(f"{kind}-{fault.__name__}", run, ())


# Tasks: each key with each kind of wrong value, and what only its meaning tells


def task_with(table=None, **changes):
    def run(folder):
        path = tiny.write_task(folder, "towns", **changes)
        if table is not None:
            (folder / "towns.csv").write_text(table)
        tasks.load(path)

    return run


def task_keys():
    rules = yaml.safe_load(checks.SCHEMA.read_text())["properties"]
    for key, inner in rules.items():
        for what, value in wrong(inner):
            if (what, key) in {("nothing", "separator"), ("nothing", "source")} or value is None:
                continue
            yield Case(f"task.{key}-{what}", task_with(**{key: value}), ("towns.yaml", key))
        if len(key) > 4:
            typo = key[:-1]
            says = (f"unknown key '{typo}'", f"did you mean '{key}'")
            yield Case(f"task.{key}-typo", task_with(**{typo: "x"}), ("towns.yaml", *says))


ROWS = "argument,answer\nPeru,Lima\nCuba,Havana\n"
TASKS = [
    ("no-argument", {"templates": ["The capital is {answer}"]}, "needs {argument}"),
    ("turned", {"templates": ["{answer} is of {argument}"]}, "stands before {argument}"),
    ("no-answer", {"templates": ["Of {argument}:"]}, "has no {answer}"),
    ("answer-twice", {"templates": ["{argument} {answer} {answer}"]}, "{answer} twice"),
    ("two-spaces", {"templates": ["{argument}:  {answer}"]}, "several spaces"),
    ("space-or-not", {"templates": ["{argument}: {answer}", "{argument}:{answer}"]}, "write all alike"),
    ("nested-format", {"templates": ["{argument:{answer}} {answer}"]}, "without : or !"),
    ("open-brace", {"templates": ["{argument {answer}"]}, "is no template"),
    ("column", {"templates": ["{argumnt} {answer}"]}, "did you mean 'argument'?"),
    ("attribute", {"templates": ["{argument.x} {answer}"]}, "is no column"),
    ("extractive-without-answer", {"extractive": {"prefix": "Of {argument}. "}}, "has no {answer}"),
    ("extractive-same", {"extractive": {"answer": "yes"}}, "the same for every row"),
    ("demonstration", {"demonstrations": ["Frnce"]}, "did you mean 'France'?"),
    ("kind", {"kind": "one-to-on"}, "did you mean 'one-to-one'?"),
    ("group", {"out_of_domain": {"group": "odd"}}, "group 'odd'"),
]  # fmt: skip
TABLES = [
    ("header-twice", "argument,answer,answer\nPeru,Lima,x\nCuba,Havana,y\n", "'answer' twice"),
    ("header-case", "Argument,Answer\nPeru,Lima\nCuba,Havana\n", "did you mean 'Argument'?"),
    ("semicolons", "argument;answer\nPeru;Lima\n", "split by commas"),
    ("row-twice", ROWS + "Peru,Lima\n", "rows 1 and 3 are the same pair"),
    ("one-row", "argument,answer\nPeru,Lima\n", "one row is no relation"),
    ("no-row", "argument,answer\n", "the task is empty"),
    ("one-argument", "argument,answer\nPeru,Lima\nPeru,Cusco\n", "argument 'Peru'"),
    ("empty-cell", ROWS + "Chad,\n", "row 3: an empty argument or answer"),
    ("empty-second", ROWS + "Chad,A|\n", "row 3: an empty argument or answer"),
    ("cell-too-many", ROWS + "Chad,A,B\n", "line 4"),
    ("cell-too-few", ROWS + "Chad\n", "line 4"),
    ("cell-after-blank", ROWS + "\n\nChad\n", "line 6"),
    ("cell-after-lines", ROWS + '"Sri\nLanka",Kotte\nChad\n', "line 6"),
    ("quote-after-blank", ROWS + '\n"Chad" a,b\n', "line 5: not CSV"),
    ("open-quote", ROWS + 'Chad,"A\n', "not CSV"),
    ("lost-letters", ROWS + "Per\ufffd,Lima\n", "no text"),
]
ROW = "argument,answer,scene\nPeru,Lima,x\nCuba,Havana,x\nChad,A,y\n"


def out_of_domain(name):
    def run(folder):
        own = {"file": str(tiny.write_task(folder, "towns", out_of_domain={"task": name}))}
        return Sweep(config.checked(edited(("tasks", "towns"), own))).loaded

    return run


# Models: folders whose parts do not fit


def spoilt(spoil, read=lambda folder: folders.check("m", folder, 3)):
    def run(folder):
        shutil.copytree(WEIGHTS, folder / "weights")
        spoil(folder / "weights")
        return lambda: read(folder / "weights")

    return run


def told(**changes):
    def spoil(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return spoil


def tensors(**changes):
    def spoil(folder):
        path = folder / "model.safetensors"
        found = load_file(path)
        for key, change in changes.items():
            name = next(one for one in found if one.endswith(key.replace("__", ".")))
            new = change(found.pop(name))
            found |= {} if new is None else {name: new}
        save_file(found, path, {"format": "pt"})

    return spoil


def vocabulary_of(count):
    def spoil(folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = dict(list(content["model"]["vocab"].items())[:5]) | {"zz": count - 1}
        content["model"] |= {"vocab": vocabulary, "merges": []}
        path.write_text(json.dumps(content))

    return spoil


def header_of(length):
    def spoil(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])

    return spoil


def stage_models(folder):
    """The stage itself, of which the last line is the problem; nothing is written."""
    target = folder.parent / "described"
    assert main(describe("llama", folder, target, name="m").arguments) == 1
    assert not any(target.glob("*"))


def stage_states(folder):
    """NaN is told when the model is loaded."""
    target = folder.parent.parent / (folder.parent.name + "-described")
    stage = describe("llama", folder, target, name="m")
    assert main(stage.arguments) == 0
    inputs = {"model": stage.description, "readout": stage.readout}
    task = tiny.write_task(target / "tasks", "towns")
    prompts, states = target / "prompts.parquet", target / "states.safetensors"
    settings = json.dumps({"demonstrations": 1, "seed": 0, "max_prompts": 3})
    assert (
        main(
            command(
                "prompts", model=stage.description, task=task, settings=settings, output=prompts
            )
        )
        == 0
    )
    assert main(command("states", **inputs, prompts=prompts, batch_tokens=64, output=states)) == 1
    assert not states.exists()


def doubles(**changes):
    """Two models, the second a copy of the first one's files."""

    def run(folder):
        shutil.copytree(WEIGHTS, folder / "weights")
        shutil.copytree(WEIGHTS, folder / "copy")
        other = LOCAL | {"path": str(folder / "copy")} | changes.get("other", {})
        if changes.get("same"):
            other |= {"path": str(folder / "weights")}
        models = {"m": LOCAL | {"path": str(folder / "weights")} | changes.get("m", {}), "n": other}
        return lambda: folders.check_all(
            config.checked(BASE | {"models": models})["models"], [*models]
        )

    return run


def nan(tensor):
    return tensor.fill_(torch.nan)


MODELS = [
    ("encoder-decoder", spoilt(told(is_encoder_decoder=True)), "is an encoder-decoder"),
    ("masked", spoilt(told(architectures=["BertForMaskedLM"])), "BertForMaskedLM does not say"),
    ("packed", spoilt(told(quantization_config={"quant_method": "mxfp4"})), "are packed (mxfp4)"),
    ("pictures", spoilt(told(model_type="llama4", text_config={}, vision_config={})), "'llama4' reads pictures too"),
    ("no-model-type", spoilt(told(model_type=None)), "has no model_type"),
    ("layers", spoilt(told(num_hidden_layers=2)), "write layers: 2"),
    ("rows", spoilt(told(vocab_size=600)), "config.json says vocab_size: 600"),
    ("smaller-vocabulary", spoilt(vocabulary_of(50)), "has 50 tokens"),
    ("larger-vocabulary", spoilt(vocabulary_of(5000)), "has 5000 tokens"),
    ("four-bytes", spoilt(header_of(4)), "missing or damaged"),
    ("cut-header", spoilt(header_of(100)), "a header of"),
    ("cut-tensors", spoilt(header_of(-9)), "bytes of tensors, not"),
    ("no-weights", spoilt(lambda folder: (folder / "model.safetensors").unlink()), "no *.safetensors"),
    ("no-folder", spoilt(shutil.rmtree), "no config.json in"),
    ("unlisted-file", spoilt(lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')), "b.safetensors is missing"),
    ("unlisted-tensor", spoilt(lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')), "which has it not"),
    ("no-map", spoilt(lambda f: (f / "model.safetensors.index.json").write_text("{}")), "has no weight_map"),
    ("same-path", doubles(same=True), "are the same weights (path"),
    ("copied-weights", doubles(), "byte by byte"),
    ("same-sha256", doubles(m={"sha256": "0" * 64}, other={"sha256": "0" * 64}), "(sha256)"),
]  # fmt: skip
LOADS = [
    ("family", spoilt(told(model_type="nonesuch"), stage_models), "nonesuch"),
    ("heads", spoilt(told(num_attention_heads=5), stage_models), "bad value in"),
    ("shape", spoilt(tensors(norm__weight=lambda t: t[:-1].clone()), stage_models), "has shape (31,), the model needs (32,)"),
    ("lacking", spoilt(tensors(norm__weight=lambda t: None), stage_models), "has no tensor for"),
    ("damaged-tokenizer", spoilt(lambda f: (f / "tokenizer.json").write_text('{"model": {"vocab": {"a": 409}}}'), stage_models), "no tokenizer in"),
    ("nan", spoilt(tensors(down_proj__weight=nan), stage_states), "numbers that are infinite or none"),
]  # fmt: skip

CASES = [
    *config_keys(),
    *(Case(name, checked(path, value), ("config, ", says)) for name, path, value, says in CONFIGS),
    *(Case(name, swept(content), tuple(says)) for name, content, *says in GRIDS),
    *file_cases(),
    *task_keys(),
    *(Case(f"template-{name}", task_with(**changes), ("towns.yaml", says)) for name, changes, says in TASKS),
    *(Case(f"table-{name}", task_with(data, demonstrations=None), ("towns.csv", says)) for name, data, says in TABLES),
    Case("same-question", task_with(ROW, templates=["In {scene}: {answer}"], demonstrations=None), ("asks the same of 'Peru' and 'Cuba'",)),
    Case("out-of-domain-typo", out_of_domain("us_capitols"), ("'us_capitols'", "did you mean 'us_capitals'?")),
    Case("out-of-domain-itself", out_of_domain("towns"), ("is the task itself",)),
    *(Case(f"model-{name}", run, ("m", says)) for name, run, says in MODELS),
    *(Case(f"load-{name}", run, (says,)) for name, run, says in LOADS),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    global WEIGHTS
    WEIGHTS = tmp_path_factory.mktemp("weights") / "llama"
    tiny.save("llama", WEIGHTS)


def tree(folder):
    """What is below a folder, and how large."""
    return {path: path.lstat().st_size for path in folder.rglob("*")}


def test_there_are_two_hundred_of_them():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 200


@pytest.fixture
def no_override():
    """Root may read no more than its files' modes allow, as anybody else.

    capabilities(7): CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are 1 and 2 in the first word.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    given = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of two words
    assert libc.capget(header, given) == 0
    fewer = (ctypes.c_uint32 * 6)(*given)
    fewer[0] &= ~0b110
    assert libc.capset(header, fewer) == 0
    yield
    assert libc.capset(header, given) == 0


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case, tmp_path, capsys, no_override):
    try:
        read = case.run(tmp_path)
        before = tree(tmp_path)
        if not callable(read):
            pytest.fail("silent")
        read()
        said = capsys.readouterr().err.strip().splitlines()
        assert said and "Traceback" not in "\n".join(said), "silent"
        line = said[-1]  # a stage's: a log's last line is why its job failed
    except Problem as problem:
        line, before = str(problem), before if "before" in locals() else tree(tmp_path)
    assert len(line.splitlines()) == 1 and len(line) < 800
    for words in case.says:
        assert words in line
    if not case.says:  # a file: its own path
        assert str(tmp_path) in line
    assert CURE.search(line), line
    assert tree(tmp_path) == before


# The same through the commands that people type


def typed(folder, *words):
    """The output of a command in a folder, as text, and its exit code."""
    environment = warm.environment(PYTHONPATH=str(REPO / "workflow"))
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr, done.returncode


def run_file(folder):
    """A config of a folder with weights and a task, its own where a case changes it."""
    if not (folder / "weights").exists():
        shutil.copytree(WEIGHTS, folder / "weights")
    own = {"file": str(tiny.write_task(folder / "tasks", "towns"))}
    return BASE | {"tasks": {"towns": own}}


TYPED = [
    ("scales", ("interventions", "scales"), [math.nan], "config, interventions > scales"),
    ("list", ("swaps", "tasks"), ["town"], "did you mean 'towns'?"),
    ("task", ("tasks", "towns", "file"), "tasks/town.yaml", "did you mean 'towns.yaml'?"),
    ("shots", ("prompts", "demonstrations"), 100, "write demonstrations: "),
    ("layers", ("models", "m", "layers"), 4, "write layers: 3"),
    ("double", ("models", "n"), LOCAL, "'m' and 'n' are the same weights"),
]


@pytest.mark.parametrize("name, path, value, says", TYPED, ids=[case[0] for case in TYPED])
def test_snakemake_starts_no_job(tmp_path, name, path, value, says):
    content = edited(path, value, run_file(tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    before = tree(tmp_path)
    words = ("-m", "snakemake", "-s", REPO / "Snakefile", "--directory", tmp_path, "--cores", 1)
    said, code = typed(REPO, "python", *words, "--configfile", tmp_path / "run.yaml")
    assert code and "Traceback" not in said
    assert len([line for line in said.splitlines() if says in line]) == 1, said
    left = {path for path in tree(tmp_path) if ".snakemake" not in path.parts}
    assert left == before.keys()


COMMANDS = [
    ("status", ["status", "--configfile", "none.yaml"], "cannot read none.yaml"),
    ("plan", ["plan", "n", "--configfile", "run.yaml"], "has no model 'n'"),
    ("plan-folder", ["plan", "m", "--configfile", "weights"], "weights is a folder"),
    ("prune", ["prune", "--configfile", "cut.yaml"], "cut.yaml: not YAML"),
    ("twice", ["status", "--configfile", "twice.yaml"], "the key 'a' stands here twice"),
    ("merge", ["merge", "loop", "run.yaml", "--output", "out.duckdb"], "loop"),
]


@pytest.mark.parametrize("name, words, says", COMMANDS, ids=[case[0] for case in COMMANDS])
def test_command_says_one_line(tmp_path, name, words, says):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_file(tmp_path)))
    (tmp_path / "cut.yaml").write_text("models: {m: [")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "loop").symlink_to("loop")
    before = tree(tmp_path)
    said, code = typed(tmp_path, "python", "-m", "vecsweep", *words)
    assert code == 1 and tree(tmp_path) == before
    (line,) = said.splitlines()
    assert line.startswith(f"vecsweep {words[0]}: ") and says in line


def test_settings_without_a_key(refused):
    paths = [word for name in ("database", "svg", "png") for word in (f"--{name}", "x")]
    line = refused(["figures", "--settings", "{}", *paths])
    assert "its settings have no 'name'; add it" in line


def test_no_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and said[-1].endswith("write one, vecsweep --help lists them")


def test_what_is_fine_stays_fine(tmp_path):
    """A byte order mark, Windows' ends of lines, a language without spaces, one name for two dtypes."""
    path = tiny.write_task(tmp_path, "towns")
    for file in (path, tmp_path / "towns.csv"):
        text = file.read_text()
        file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(tasks.load(path).rows) == len(tiny.CAPITALS)
    title = {"title": "Prices in $\\frac{$"}
    assert tasks.load(tiny.write_task(tmp_path, "towns", **title)).title == title["title"]
    chinese = tasks.load(REPO / "workflow" / "vecsweep" / "tasks" / "capitals_chinese.yaml")
    assert chinese.space == "" and tasks.load(path).space == " "
    plain = tiny.tokenizer().backend_tokenizer
    rows = build(chinese, plain, {"demonstrations": 1, "seed": 0, "max_prompts": None})
    for row in rows[::20]:
        assert (
            row["dropped"]
            or row["answer_tokens"][0]
            == (plain.encode(row["text"] + row["answer"]).ids[len(row["token_ids"])])
        )
        assert not row["text"].endswith(" ")
    assert all(r["answer_in_prompt"] for r in rows if r["prompt_set"] == "extractive")
    models = {"m": LOCAL, "half": LOCAL | {"dtype": "float16"}}
    folders.check_all(config.checked(BASE | {"models": models})["models"], [])
