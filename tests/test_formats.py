"""Published data sets are tasks as they are: small files in each form, and the real ones if at hand."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import transformers
import yaml

import tiny
from conftest import REPO
from vecsweep import Problem, tasks
from vecsweep.stages.prompts import build
from vecsweep.sweep import Sweep
from vecsweep.tasks.formats import kind_of, locate
from vecsweep.tasks.splits import split_rows

SETTINGS = {"demonstrations": 1, "seed": 0, "max_prompts": None}
PLAIN = ["Q: {argument}\nA: {answer}"]
PAIRS = [("Oz", "Emerald"), ("Narnia", "Cair"), ("Ruritania", "Strelsau"), ("Utopia", "Amaurot")]

LRE = {
    "name": "made up land capital",
    "prompt_templates": ["The capital of {} is", "{}'s capital {is} "],
    "prompt_templates_zs": ["Name it: {}"],
    "properties": {"relation_type": "factual", "domain_name": "land", "symmetric": False},
    "samples": [{"subject": a, "object": b} for a, b in [*PAIRS, ("Oz ", "Emerald City")]],
}
VECTORS = [{"input": a, "output": b} for a, b in [*PAIRS, PAIRS[0]]]
BIG_BENCH = {"name": "lands", "examples": [{"input": a, "target": b} for a, b in PAIRS]}
GOOGLE = """\
: land-capital
Oz Emerald Narnia Cair_Paravel
Oz Emerald Ruritania Strelsau
Narnia Cair_Paravel Ruritania Strelsau
: gram1-shouts
hop HOP run RUN
"""
BATS = "land_of_oz\temerald\nnarnia\tcair_paravel/cair\nruritania\tstrelsau\n"


def put(folder, name, content):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def pairs(task):
    return [(row["argument"], row["answers"]) for row in task.rows]


def test_lre(tmp_path):
    task = tasks.load(put(tmp_path, "land_capital_city.json", LRE))
    assert (task.name, task.title) == ("land_capital_city", "Land capital city")
    assert task.templates == [
        "The capital of {argument} is {answer}",
        "{argument}'s capital {{is}} {answer}",
    ]
    assert task.separator == "\n" and task.kind == "one-to-one" and not task.extractive
    # A subject that comes twice is one row with both objects.
    assert pairs(task)[0] == ("Oz", ["Emerald", "Emerald City"]) and len(task.rows) == 4
    found = {
        tasks.abstractive_prompt(task, task.rows[0], [task.rows[1]], template)
        for template in range(2)
    }
    assert found == {
        "The capital of Narnia is Cair\nThe capital of Oz is",
        "Narnia's capital {is} Cair\nOz's capital {is}",
    }


def test_function_vectors(tmp_path):
    task = tasks.load(put(tmp_path, "land-capital.json", VECTORS), "mine")
    assert (task.name, task.title, task.templates) == ("mine", "Land capital", PLAIN)
    assert pairs(task) == [(a, [b]) for a, b in PAIRS]  # what is said twice counts once
    assert tasks.abstractive_prompt(task, task.rows[0], [task.rows[1]]) == (
        "Q: Narnia\nA: Cair\n\nQ: Oz\nA:"
    )
    rows = build(task, tiny.tokenizer().backend_tokenizer, SETTINGS)
    assert {row["prompt_set"] for row in rows} == {"abstractive", "novel"}


def test_big_bench(tmp_path):
    task = tasks.load(put(tmp_path, "lands.json", BIG_BENCH))
    assert pairs(task) == [(a, [b]) for a, b in PAIRS] and task.templates == PLAIN


def test_google(tmp_path):
    path = put(tmp_path, "questions-words.txt", GOOGLE)
    task = tasks.load(f"{path}#land-capital")
    assert (task.name, task.title) == ("land-capital", "Land capital")
    assert pairs(task) == [
        ("Oz", ["Emerald"]),
        ("Narnia", ["Cair Paravel"]),
        ("Ruritania", ["Strelsau"]),
    ]
    assert len(tasks.load(f"{path}#gram1-shouts").rows) == 2
    assert task.data == str(path)


@pytest.mark.parametrize("space", ["\t", " "])
def test_bats(tmp_path, space):
    path = put(tmp_path, "E99 [land - capital].txt", BATS.replace("\t", space))
    task = tasks.load(path)
    assert task.title == "E99 [land - capital]"
    assert pairs(task) == [
        ("land of oz", ["emerald"]),
        ("narnia", ["cair paravel", "cair"]),
        ("ruritania", ["strelsau"]),
    ]


def test_folder(tmp_path):
    put(tmp_path, "data/factual/land_capital.json", LRE)
    put(tmp_path, "data/other.json", VECTORS)
    task = tasks.load(f"{tmp_path}/data#land_capital")
    assert task.name == "land_capital" and task.data.endswith("factual/land_capital.json")
    assert locate(f"{tmp_path}/data#other.json").file.name == "other.json"


def test_a_task_file_says_it_otherwise(tmp_path):
    put(tmp_path, "lands.json", LRE)
    content = {
        "title": "Lands",
        "data": "lands.json",
        "templates": ["{argument} has {answer}"],
        "extractive": {"prefix": "{argument}: {answer}. "},
    }
    task = tasks.load(put(tmp_path, "mine.yaml", yaml.safe_dump(content)))
    assert (task.name, task.title, task.kind) == ("mine", "Lands", "one-to-one")
    assert task.templates == content["templates"] and task.separator == "\n"
    google = put(tmp_path, "words.txt", GOOGLE)
    task = tasks.load(put(tmp_path, "two.yaml", f"data: {google.name}#gram1-shouts\n"))
    assert pairs(task) == [("hop", ["HOP"]), ("run", ["RUN"])]


@pytest.mark.parametrize(
    "heading", ["argument,answer,group,lemma", "argument, answer,group ,lemma"]
)
def test_cells_are_stripped(tmp_path, heading):
    """Else ` odd` and `odd` were two groups, of which one is in-domain in silence."""
    table = "see, saw,odd , see\ngo,went , odd,go\nrun,ran,odd,run\nwalk,walked,,\n"
    put(tmp_path, "see.csv", f"{heading}\n{table}")
    task = {"title": "See", "kind": "one-to-one", "data": "see.csv", "separator": "\n"}
    task |= {"templates": ["{argument} is {answer}."], "out_of_domain": {"group": "odd"}}
    rows = tasks.load(put(tmp_path, "see.yaml", yaml.safe_dump(task))).rows
    assert [row["group"] for row in rows] == ["odd", "odd", "odd", ""]
    assert [row["lemma"] for row in rows] == ["see", "go", "run", ""]
    assert [row["answers"] for row in rows] == [["saw"], ["went"], ["ran"], ["walked"]]


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("see.csv", "argument,answer\na|b,c\nd,e\n", "a|b"),
        ("see.json", '[{"input": "a", "output": "c|d"}, {"input": "d", "output": "e"}]', "c|d"),
    ],
)
def test_a_bar_in_a_word_is_refused(tmp_path, name, content, word):
    """It stands between answers, and between the demonstrations that no test prompt may share."""
    put(tmp_path, name, content)
    if name.endswith(".csv"):
        task = {"title": "See", "kind": "one-to-one", "data": name}
        task |= {"templates": ["{argument} is {answer}."], "separator": "\n"}
        put(tmp_path, name := "see.yaml", yaml.safe_dump(task))
    with pytest.raises(Problem) as error:
        tasks.load(tmp_path / name)
    assert f"row 1: '{word}' has a |" in str(error.value) and "write it without" in str(error.value)


def test_a_title_fits_the_figures(tmp_path):
    """A file's name may be as long as a line of them."""
    put(tmp_path, f"{'word_' * 40}.txt", "a\tb\nc\td\n")
    (path,) = tmp_path.iterdir()
    assert 40 < len(tasks.load(path).title) <= 60
    task = {"title": "x" * 61, "data": path.name, "templates": ["{argument} is {answer}."]}
    put(tmp_path, "long.yaml", yaml.safe_dump(task | {"kind": "one-to-one", "separator": " "}))
    with pytest.raises(Problem, match="title has 61 letters, of which 60 fit a figure; shorten it"):
        tasks.load(tmp_path / "long.yaml")


def test_kind():
    def rows(*answers):
        return [{"argument": str(i), "answers": some} for i, some in enumerate(answers)]

    assert kind_of(rows(["a"], ["b"], ["c"], ["A", "d"])) == "one-to-one"
    assert kind_of(rows(["a"], ["b"], ["A"], ["B"])) == "many-to-one"
    assert kind_of(rows(["a", "b"], ["b", "c"], ["c"])) == "one-to-many"


def test_in_a_config(tmp_path, monkeypatch):
    """Named in the config as they are: what the workflow watches is the file, not its section."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "words.txt", GOOGLE)
    put(tmp_path, "data/lands.json", LRE)
    tasks_named = {"shouts": {"file": "words.txt#gram1-shouts"}, "lands": {"file": "data#lands"}}
    sweep = Sweep({"models": {}, "tasks": tasks_named})
    assert [sweep.task_file(name) for name in tasks_named] == ["words.txt", "data/lands.json"]
    assert [len(sweep.loaded[name].rows) for name in tasks_named] == [2, 4]
    assert sweep.loaded["shouts"].name == "shouts"


BAD = [
    ("x.json", {"samples": []}, "needs 'prompt_templates'"),
    ("x.json", LRE | {"prompt_templates": ["The capital is"]}, "has no {} for its subject"),
    ("x.json", LRE | {"prompt_templates": [3]}, "has no {} for its subject"),
    ("x.json", LRE | {"samples": [{"subject": "Oz"}]}, "each with 'subject' and 'object'"),
    ("x.json", LRE | {"samples": []}, "the task is empty"),
    ("x.json", LRE | {"samples": LRE["samples"][:1]}, "one row is no relation"),
    ("x.json", [{"input": "Oz"}], "each with 'input' and 'output'"),
    ("x.json", [{"input": "Oz", "output": True}], "True is no word"),
    ("x.json", [{"input": "Oz", "output": ""}], "row 1: an empty argument or answer"),
    ("x.json", {"rows": []}, "JSON, but neither LRE"),
    ("x.json", "{", "not JSON"),
    ("x.txt", GOOGLE, "name a section, as x.txt#SECTION; it has land-capital, gram1-shouts"),
    ("x.txt#lands", GOOGLE, "no section 'lands'"),
    ("x.txt#land-capital", GOOGLE + "one two three\n", "line 7: an analogy has four words, not 3"),
    ("x.json#lands", VECTORS, "'#lands' means nothing here"),
    ("x.yaml#lands", "data: x.yaml\n", "'#lands' means nothing here"),
    ("x.txt", "a line of text that is no pair\n", "a task file is a mapping"),
    ("x.tsv", "argument\tanswer\nPoland\tWarsaw\n", "parted by tabs; part them by commas"),
]


@pytest.mark.parametrize("name, content, says", BAD, ids=[says for _, _, says in BAD])
def test_bad_file(tmp_path, name, content, says):
    put(tmp_path, name.split("#")[0], content)
    with pytest.raises(Problem) as caught:
        tasks.load(f"{tmp_path}/{name}")
    line = str(caught.value)
    assert says in line and len(line.splitlines()) == 1 and str(tmp_path) in line


@pytest.mark.parametrize(
    "name, says",
    [("", "name one file as"), ("#z", "0 files are named 'z'"), ("#a", "2 files are named 'a'")],
)
def test_bad_folder(tmp_path, name, says):
    for path in ("a.json", "deep/a.json", "b.json"):
        put(tmp_path / "data", path, VECTORS)
    with pytest.raises(Problem) as caught:
        tasks.load(f"{tmp_path}/data{name}")
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


# The published files themselves: VECSWEEP_PUBLISHED names a folder with the repositories' files


def published():
    folder = os.environ.get("VECSWEEP_PUBLISHED")
    return sorted(Path(folder).rglob("*.json")) if folder else []


@cache
def tokenizer_in(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.skipif(not published(), reason="VECSWEEP_PUBLISHED names no folder with *.json files")
@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_published_file_is_a_task_unedited(path):
    """It is split, and gives prompts for the models of VECSWEEP_MODELS (of its first 100 rows)."""
    task = tasks.load(path)
    assert len(split_rows(task, 0)) == len(task.rows) >= 15
    some = tasks.Task(**vars(task) | {"rows": task.rows[:100]})
    folder = os.environ.get("VECSWEEP_MODELS")
    for weights in Path(folder).glob("*/weights") if folder else []:
        rows = build(some, tokenizer_in(weights).backend_tokenizer, SETTINGS)
        rows = [row for row in rows if row["dropped"] is None]
        assert len(rows) >= len(some.rows), weights  # of two sets: half of the pairs


def test_packaged_tasks_are_no_published_format():
    for path in (REPO / "workflow" / "vecsweep" / "tasks").glob("*.yaml"):
        assert tasks.load(path).data.endswith(".csv")
