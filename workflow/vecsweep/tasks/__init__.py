"""Tasks: relations as data. One YAML file and one table of rows each, see `capitals.yaml`."""

import csv
import io
import json
import random
import string
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vecsweep import Problem

KINDS = ("one-to-one", "many-to-one", "one-to-many")
KEYS = {
    "title": True,
    "kind": True,
    "data": True,
    "templates": True,
    "separator": True,
    "extractive": True,
    "demonstrations": False,
    "out_of_domain": False,
    "source": False,
}
TYPES = {
    "extractive": (dict, "a mapping"),
    "out_of_domain": (dict, "a mapping"),
    "templates": (list, "a list"),
    "demonstrations": (list, "a list"),
}


@dataclass(frozen=True)
class Task:
    """A relation: `rows` are dicts with `argument`, `answers` (a list) and the template's columns."""

    name: str
    title: str
    kind: str
    templates: list
    separator: str
    extractive: dict
    data: str
    rows: list
    demonstrations: list = field(default_factory=list)
    out_of_domain: dict = field(default_factory=dict)


def load(path, name: str | None = None) -> Task:
    """The task in a YAML file and the data file that it names; Problem if anything is off.

    `name` is its key in the config, by which all results call it; without it the file's stem.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"no task file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise Problem(f"{path}: a task file is a mapping with the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise Problem(f"{path}: unknown key '{key}'; allowed are {', '.join(KEYS)}")
    for key, needed in KEYS.items():
        if needed and key not in content:
            raise Problem(f"{path}: the key '{key}' is missing")
        kind, called = TYPES.get(key, (str, "text"))
        if key in content and not isinstance(content[key], kind):
            raise Problem(f"{path}: {key} must be {called}, not {content[key]!r}")
    if content["kind"] not in KINDS:
        raise Problem(f"{path}: kind '{content['kind']}' is none of {', '.join(KINDS)}")
    content.pop("source", None)
    content["data"] = str(path.parent / content["data"])
    task = Task(name=name or path.stem, rows=read_rows(Path(content["data"])), **content)
    _check_columns(task, path)
    return task


def read_rows(path: Path) -> list[dict]:
    """Rows of a CSV file, or of a BIG-bench JSON task (`examples` with `input` and `target`).

    `answer` may hold several right answers, split by `|`; BIG-bench gives a list or scores.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: not UTF-8 text: {error}") from error
    if path.suffix == ".json":
        rows = _big_bench_rows(path, text)
    else:
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            columns, rows = reader.fieldnames or [], list(reader)
        except csv.Error as error:
            raise Problem(f"{path}, line {reader.line_num}: not CSV: {error}") from error
        for column in ("argument", "answer"):
            if column not in columns:
                raise Problem(
                    f"{path}: no column '{column}'; the first line must name the columns, "
                    "argument and answer among them"
                )
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise Problem(f"{path}, line {number}: not as many cells as the first line names")
            row["answers"] = [a.strip() for a in row.pop("answer").split("|")]
    if not rows:
        raise Problem(f"{path}: the task is empty; add rows with argument and answer")
    for number, row in enumerate(rows, start=1):
        row["argument"] = row["argument"].strip()
        if not row["argument"] or not row["answers"] or not all(row["answers"]):
            raise Problem(f"{path}, row {number}: an empty argument or answer")
    return rows


def _big_bench_rows(path, text):
    try:
        examples = json.loads(text)["examples"]
        rows = []
        for example in examples:
            target = example.get("target") or [
                answer for answer, score in example["target_scores"].items() if score > 0
            ]
            answers = target if isinstance(target, list) else [target]
            answers = [answer.strip() for answer in answers]
            rows.append({"argument": example["input"].strip(), "answers": answers})
        return rows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(
            f"{path}: not a BIG-bench task: needs 'examples', each with 'input' and "
            f"'target' or 'target_scores' ({error})"
        ) from error


def _check_columns(task, path):
    extractive = task.extractive
    if list(extractive) not in (["prefix"], ["answer"]) or not isinstance(
        *extractive.values(), str
    ):
        raise Problem(f"{path}: extractive is one of {{prefix: text}} or {{answer: text}}")
    for text in task.templates:
        if "{answer}" not in text:
            raise Problem(f"{path}: the template has no {{answer}}")
    for text in (*task.templates, *extractive.values()):
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text)]
        except ValueError as error:
            raise Problem(f'{path}: "{text}" is no template: {error}') from error
        for name in names:
            if name not in (None, "answer") and name not in task.rows[0]:
                raise Problem(f"{path}: '{{{name}}}' in \"{text}\" is no column of its data")
    arguments = {row["argument"] for row in task.rows}
    for shown in task.demonstrations:
        if shown not in arguments:
            raise Problem(f"{path}: the demonstration '{shown}' is no argument in its data")


def choose_demonstrations(task: Task, row: dict, number: int, seed: int) -> list[dict]:
    """`number` rows to show before the question of `row`: those that the task names, then drawn.

    Never the row itself or one with its argument, so that the answer is not in the prompt; the
    same for all other rows, so that prompts share their beginning.
    """
    named = [next(r for r in task.rows if r["argument"] == a) for a in task.demonstrations]
    drawn = random.Random(f"{seed} {task.name} demonstrations").sample(task.rows, len(task.rows))
    pool = named + [r for r in drawn if r not in named]
    chosen, seen = [], {row["argument"]}
    for candidate in pool:
        if len(chosen) == number:
            break
        if candidate["argument"] not in seen:
            chosen.append(candidate)
            seen.add(candidate["argument"])
    return chosen


def abstractive_prompt(task: Task, row: dict, demonstrations: list[dict]) -> str:
    """The prompt of the paper's section 3, cut before the answer and its space."""
    shown = [_fill(task.templates[0], r, r["answers"][0]) for r in demonstrations]
    return task.separator.join([*shown, _question(task, row)])


def extractive_prompt(task: Task, row: dict, demonstrations: list[dict]) -> str:
    """The twin whose answer stands in the prompt (paper section 3, Extractive twins)."""
    if "answer" in task.extractive:
        pattern = task.extractive["answer"]
        shown = [_fill(task.templates[0], r, _fill(pattern, r, "")) for r in demonstrations]
        return task.separator.join([*shown, _question(task, row)])
    facts = [_fill(task.extractive["prefix"], r, r["answers"][0]) for r in [*demonstrations, row]]
    return "".join(facts) + abstractive_prompt(task, row, demonstrations)


def extractive_answers(task: Task, row: dict) -> list[str]:
    """What the extractive twin is right to say."""
    if "answer" in task.extractive:
        return [_fill(task.extractive["answer"], row, "")]
    return row["answers"][:1]


def novel_prompt(row: dict, words: list[str], generator: random.Random) -> str:
    """Three random words and the argument, thrice, cut before the last argument (paper section 3)."""
    context = " ".join(generator.sample(words, 3))
    return f"{context} {row['argument']} {context} {row['argument']} {context}"


def _fill(template, row, answer):
    return template.format_map(row | {"answer": answer})


def _question(task, row):
    return _fill(task.templates[0].split("{answer}")[0], row, "").rstrip(" ")


def random_words() -> list[str]:
    """Common words for random contexts; none is an argument or answer of a packaged task."""
    return (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
