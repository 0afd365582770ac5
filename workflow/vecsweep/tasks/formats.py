"""Reading rows: our CSV tables, and published data sets as they are.

A format is told by its content:

- CSV: a first line with the columns `argument` and `answer`; several answers split by `|`;
- LRE (github.com/evandez/relations): JSON with `prompt_templates` and `samples`;
- function vectors (github.com/ericwtodd/function_vectors): a JSON list of `input` and `output`;
- BIG-bench: JSON with `examples`, each with `input` and `target` or `target_scores`;
- Google analogies (questions-words.txt): sections `: NAME`, lines of two pairs; FILE#NAME is one;
- BATS 3.0: lines of a word, a tab or space, and answers split by `/`.

FOLDER#NAME is the file of that name in a folder or below it.
"""

import csv
import io
import json
import os
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from vecsweep import Problem, nearest
from vecsweep.config import parsed
from vecsweep.files import text_in

# For data that come without a template, the one of the function vectors.
PLAIN = {"templates": ["Q: {argument}\nA: {answer}"], "separator": "\n\n"}
SAMPLES = (
    "LRE ('samples'), BIG-bench ('examples') nor function vectors (a list of input and output)"
)

# Control characters, and what stands where a character was lost.
SPOILT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")


class Source(NamedTuple):
    """A file of rows, and the section of it that is meant, if it has such."""

    file: Path
    part: str = ""


def locate(path) -> Source:
    """The file that `FILE`, `FILE#SECTION` or `FOLDER#NAME` means; Problem at a folder alone."""
    path = Path(path)
    if os.path.isfile(path) or not (os.path.isdir(path) or "#" in path.name):
        return Source(path)
    whole, _, part = (str(path), "", "") if os.path.isdir(path) else str(path).rpartition("#")
    if not os.path.isdir(whole):
        return Source(Path(whole), part)
    files = sorted(p for p in Path(whole).rglob("*") if p.is_file() and p.name[0] != ".")
    found = [p for p in files if part in (p.name, p.stem)]
    if len(found) == 1:
        return Source(found[0])
    names = _some([str(p.relative_to(whole)) for p in found or files])
    raise Problem(
        f"{whole}: a folder of tasks; name one file as {whole}#NAME, of {names}"
        if not part
        else f"{whole}: {len(found)} files are named '{part}'{nearest(part, [p.stem for p in files])}; "
        f"name one of {names}"
    )


def task_file(path: Path) -> dict | None:
    """The keys of a task's YAML file; None if it is published data itself."""
    text = text_in(path)
    _check_tabs(path, text)
    if _format(text):
        return None
    content = parsed(text, path)
    if not isinstance(content, dict):
        raise Problem(
            f"{path}: neither keys and values nor published data; a task file is a mapping with keys "
            "like title, data and templates (docs/tasks.md)"
        )
    return content


def read(file: Path, part: str = "") -> tuple[list[dict], dict]:
    """The rows of a file, each with `argument` and `answers`, and what it says of its task.

    That is title, kind, templates and separator; a CSV table says nothing. Problem at a bad file.
    """
    text = text_in(file)
    _check_tabs(file, text)
    kind = None if file.suffix == ".csv" else _format(text)
    if kind != "google":
        check_whole(file, part)
    if kind is None:
        return _checked(_csv_rows(file, text), file), {}
    said: dict = {}
    if kind == "json":
        pairs, said = _json_pairs(file, text)
    elif kind == "google":
        pairs = _google_pairs(file, text, part)
    else:
        lines = [_cells(line) for line in text.splitlines() if line.strip()]
        pairs = [(_spaced(word), [_spaced(a) for a in rest.split("/")]) for word, rest in lines]
    rows = _checked(_merged(pairs), file)
    return rows, PLAIN | {"title": _title(part or file.stem), "kind": kind_of(rows)} | said


def check_whole(file: Path, part: str) -> None:
    """Problem if a section is named of a file that has none."""
    if part:
        raise Problem(f"{file}: it has no sections, so '#{part}' means nothing here; leave it out")


def kind_of(rows: list[dict]) -> str:
    """What rows map to what, where nobody said it.

    One-to-many if more than a quarter have several answers, many-to-one if there are at most half
    as many answers as rows.
    """
    if sum(len(row["answers"]) > 1 for row in rows) > len(rows) / 4:
        return "one-to-many"
    distinct = {row["answers"][0].casefold() for row in rows}
    return "many-to-one" if len(distinct) <= len(rows) / 2 else "one-to-one"


def _check_tabs(path: Path, text: str) -> None:
    """Problem at a table with tabs: its heading would be a pair of BATS."""
    if text.split("\n", 1)[0].rstrip().split("\t")[:2] == ["argument", "answer"]:
        raise Problem(f"{path}: its columns are parted by tabs; part them by commas, as CSV does")


def _format(text) -> str | None:
    """json, google or bats; None for anything else."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if lines[0].lstrip()[0] in "{[":
        return "json"
    if lines[0].startswith(": "):
        return "google"
    # A line of a task's YAML, or of a CSV table, is none of these.
    if all(_is_bats(line) for line in lines):
        return "bats"
    return None


def _cells(line):
    return line.strip().split("\t") if "\t" in line.strip() else line.split()


def _is_bats(line):
    cells = _cells(line)
    return len(cells) == 2 and cells[0] != "-" and not cells[0].endswith((":", ","))


def _csv_rows(path, text):
    # Not DictReader's own count of lines: it stands still at blank ones and at an error.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        found = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise Problem(
            f"{path}, line {reader.line_num}: not CSV: {error}; cells are split by commas, and one that "
            "holds a comma or quote stands in quotes"
        ) from error
    for column in ("argument", "answer"):
        if column not in columns:
            near = nearest(column, [name for name in columns if len(name) < 30])
            raise Problem(
                f"{path}: no column '{column}'{near}; the first line must name the columns, "
                "argument and answer among them, split by commas"
            )
    for column in columns:
        if columns.count(column) > 1:
            raise Problem(f"{path}: the first line names the column '{column}' twice; rename one")
    rows = []
    for line, cells in found:
        if len(cells) != len(columns):
            raise Problem(
                f"{path}, line {line}: not as many cells as the first line names; a cell with a comma "
                "stands in quotes"
            )
        row: dict = dict(zip(columns, map(str.strip, cells)))
        row["answers"] = row.pop("answer").split("|")
        rows.append(row)
    return rows


def _json_pairs(path, text):
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not JSON: {error}; fetch it again, or correct it there") from error
    if isinstance(content, list):
        keys, samples, said = ("input", "output"), content, {}
        called = "function vectors' file: a list, each with 'input' and 'output'"
    elif isinstance(content, dict) and "samples" in content:
        keys, samples, said = ("subject", "object"), content["samples"], _lre_texts(path, content)
        called = "LRE relation: needs 'samples', each with 'subject' and 'object'"
    elif isinstance(content, dict) and "examples" in content:
        return _big_bench_pairs(path, content), {}
    else:
        raise Problem(f"{path}: JSON, but neither {SAMPLES}; give it one of these forms")
    try:
        return [(_word(s[keys[0]]), _words(s[keys[1]])) for s in samples], said
    except (KeyError, TypeError) as error:
        raise Problem(f"{path}: not a {called} ({_why(error)}); correct that entry") from error


def _lre_texts(path, content):
    """The templates of a relation: `{}` is its subject, and the object comes last."""
    templates = content.get("prompt_templates")
    if not isinstance(templates, list) or not templates:
        raise Problem(
            f"{path}: not a LRE relation: needs 'prompt_templates', a list of texts; add them"
        )
    found = []
    for text in templates:
        if not isinstance(text, str) or "{}" not in text:
            raise Problem(f"{path}: the template {text!r} has no {{}} for its subject; write it in")
        parts = [part.replace("{", "{{").replace("}", "}}") for part in text.split("{}")]
        found.append("{argument}".join(parts).rstrip() + " {answer}")
    return {"templates": list(dict.fromkeys(found)), "separator": "\n"}


def _big_bench_pairs(path, content):
    try:
        pairs = []
        for example in content["examples"]:
            target = example.get("target") or [
                answer for answer, score in example["target_scores"].items() if score > 0
            ]
            answers = target if isinstance(target, list) else [target]
            pairs.append((example["input"].strip(), [answer.strip() for answer in answers]))
        return pairs
    except (KeyError, TypeError, AttributeError) as error:
        raise Problem(
            f"{path}: not a BIG-bench task: needs 'examples', each with 'input' and "
            f"'target' or 'target_scores' ({_why(error)}); correct that entry"
        ) from error


def _google_pairs(path, text, part):
    sections: dict[str, list] = {}
    pairs: list = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if line.startswith(":"):
            pairs = sections.setdefault(" ".join(words[1:]) or words[0][1:], [])
        elif len(words) == 4:
            pairs += [(_spaced(words[i]), [_spaced(words[i + 1])]) for i in (0, 2)]
        elif words:
            raise Problem(
                f"{path}, line {number}: an analogy has four words, not {len(words)}; correct it, with _ "
                "for a space in a word"
            )
    if part not in sections:
        near = nearest(part, sections)
        named = (
            f"no section '{part}'{near}; name one" if part else "it has sections; name a section"
        )
        raise Problem(f"{path}: {named}, as {path.name}#SECTION; it has {_some(list(sections))}")
    return sections[part]


def _merged(pairs):
    """Rows of pairs: an argument that comes again adds its answers; what is said twice counts once."""
    found: dict[str, dict[str, None]] = {}
    for argument, answers in pairs:
        found.setdefault(argument.strip(), {}).update(dict.fromkeys(map(str.strip, answers)))
    return [{"argument": argument, "answers": list(answers)} for argument, answers in found.items()]


def _checked(rows, path):
    if not rows:
        raise Problem(f"{path}: the task is empty; add rows with argument and answer")
    for number, row in enumerate(rows, start=1):
        row["argument"] = row["argument"].strip()
        row["answers"] = [answer.strip() for answer in row["answers"]]
        if not row["argument"] or not row["answers"] or not all(row["answers"]):
            raise Problem(
                f"{path}, row {number}: an empty argument or answer; fill it in, or remove it"
            )
        words = (row["argument"], *row["answers"])
        if barred := next((word for word in words if "|" in word), None):
            raise Problem(
                f"{path}, row {number}: '{barred}' has a |, which stands between answers in all tables; "
                "write it without"
            )
        if spoilt := next((word for word in words if SPOILT.search(word)), None):
            raise Problem(
                f"{path}, row {number}: {spoilt!r} has characters that are no text; save the file as "
                "UTF-8 of what was meant"
            )
    return rows


def _words(value):
    return [_word(one) for one in (value if isinstance(value, list) else [value])]


def _why(error):
    return f"no {error}" if isinstance(error, KeyError) else error


def _word(value):
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is no word")
    return str(value)


def _spaced(word):
    """A word as it is written in a text: where lines are split at spaces, `_` stands for one."""
    return word.strip().replace("_", " ")


def _title(name):
    """A file's name as words, no longer than the schema lets a title be."""
    words = name.replace("_", " ").replace("-", " ") if " " not in name else name
    return textwrap.shorten(words[:1].upper() + words[1:], 60, placeholder="...")


def _some(names):
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
