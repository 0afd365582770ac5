"""Tasks: relations as data. One YAML file and one table of rows each, see `capitals.yaml`.

Published data sets are tasks as they are, see `formats`; all keys of a task file: docs/tasks.md.
"""

import hashlib
import random
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from vecsweep import Problem, nearest
from vecsweep.tasks import checks, formats
from vecsweep.tasks.checks import fields


@dataclass(frozen=True)
class Task:
    """A relation: `rows` are dicts with `argument`, `answers` (a list) and the template's columns.

    `extractive` is empty for a task without an extractive set; `data` is the file of the rows.
    """

    name: str
    title: str
    kind: str
    templates: list[str]
    separator: str
    data: str
    rows: list[dict]
    extractive: dict = field(default_factory=dict)
    demonstrations: list[str] = field(default_factory=list)
    out_of_domain: dict = field(default_factory=dict)

    @property
    def space(self) -> str:
        """What the templates have between a prompt and the word that goes on: a space, or nothing."""
        return checks.space_of(self.templates[0])


# Written without spaces between words, as Unicode calls their letters.
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


def load(path, name: str | None = None) -> Task:
    """The task in a YAML file and the data that it names, or in a published file; Problem if not.

    `name` is its key in the config, by which all results call it; without it the file's stem.
    What the YAML leaves out, the published data it names may say: title, kind, templates.
    """
    file, part = formats.locate(path)
    said = formats.task_file(file)
    if said is None:
        said, data = {}, (file, part)
    else:
        formats.check_whole(file, part)
        checks.check_keys(said, file)
        data = formats.locate(file.parent / said["data"])
    rows, published = formats.read(*data)
    said = published | said | {"data": str(data[0])}
    for key in ("title", "kind", "templates", "separator"):
        if key not in said:
            raise Problem(f"{file}: the key '{key}' is missing")
    said.pop("source", None)
    task = Task(name=name or part or file.stem, rows=rows, **said)
    checks.check_task(task, file)
    _check_rendered(task, file)
    seen: dict[tuple, int] = {}
    for number, row in enumerate(rows, start=1):
        first = seen.setdefault(identity(task, row), number)
        if first != number:
            raise Problem(
                f"{data[0]}: rows {first} and {number} are the same pair, "
                f"'{row['argument']}' and '{row['answers'][0]}'; keep one"
            )
    return task


def _check_rendered(task, path):
    """Problem unless each row's question is its argument's own, and its answer follows as scored."""
    for text in task.templates:
        asked: dict[str, str] = {}
        for row in task.rows:
            question, argument, answer = _question(text, row), row["argument"], row["answers"][0]
            if not _fill(text, row, answer).startswith(f"{question}{task.space}{answer}"):
                raise Problem(
                    f'{path}: the template "{text}" has several spaces before the answer of '
                    f"'{argument}'; fill in its cells that are empty"
                )
            if asked.setdefault(question, argument) != argument:
                raise Problem(
                    f"{path}: the template \"{text}\" asks the same of '{asked[question]}' and "
                    f"'{argument}'; let it name {{argument}} before {{answer}}"
                )


def identity(task: Task, row: dict) -> tuple[str, ...]:
    """What makes a row itself: argument, first answer, and the columns that its templates show."""
    shown = {name for text in task.templates for name in fields(text)} - {"argument", "answer"}
    return row["argument"], row["answers"][0], *(row[name] for name in sorted(shown))


def seeded(task: Task, row: dict, purpose: str, seed: int) -> int:
    """A row's place in a seeded order, from its own words: rows added elsewhere do not move it.

    `purpose` keeps orders apart, so that which prompts are taken says nothing about their split.
    """
    words = (str(seed), task.name, purpose, *identity(task, row))
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8])


def template_of(task: Task, row: dict, seed: int) -> int:
    """The number of the one template that a row is asked in: even as far as hashes are."""
    return seeded(task, row, "template", seed) % len(task.templates)


def demonstration_pool(task: Task, seed: int) -> list[dict]:
    """Rows to choose demonstrations from: those that the task names, then all in a seeded order."""
    first: dict[str, dict] = {}
    for row in task.rows:
        first.setdefault(row["argument"], row)
    named = [first[argument] for argument in task.demonstrations]
    return named + sorted(task.rows, key=lambda row: seeded(task, row, "demonstrations", seed))


def choose_demonstrations(pool: list[dict], row: dict, number: int) -> list[dict]:
    """The first `number` rows of a pool that give nothing of `row` away, no argument twice.

    The same for most rows, so that prompts share their beginning. Fewer where fewer fit.
    """
    chosen: dict[str, dict] = {}
    for candidate in pool:
        if len(chosen) == number:
            break
        if candidate["argument"] not in chosen and not gives_away(candidate, row):
            chosen[candidate["argument"]] = candidate
    return list(chosen.values())


def check_grid(loaded: dict[str, Task], demonstrations: int, packaged: list[str]) -> None:
    """Problem at what is wrong between the tasks of a config, and between them and its prompts.

    `loaded`: task by name. `packaged`: names that a config may have, and this one need not.
    """
    for name, task in loaded.items():
        other = task.out_of_domain.get("task")
        known = [one for one in dict.fromkeys((*loaded, *packaged)) if one != name]
        if other is not None and other not in known:
            what = "is the task itself" if other == name else "is no task of the config"
            raise Problem(
                f"task '{name}', out_of_domain > task: '{other}' {what}{nearest(other, known)}; "
                "name one that stands under tasks"
            )
    for name, task in loaded.items():
        fits, argument = min(
            (len(choose_demonstrations(task.rows, row, demonstrations)), row["argument"])
            for row in task.rows
        )
        if fits < demonstrations:
            raise Problem(
                f"config, prompts > demonstrations: {demonstrations} are asked for, but {task.data} "
                f"has only {fits} that give nothing of '{argument}' away (task '{name}'); write "
                f"demonstrations: {fits}, or add rows"
            )


def gives_away(shown: dict, row: dict) -> bool:
    """Whether two rows share a word: argument, an answer, or as inverses one's answer the other's
    argument; all without regard to case."""
    return not _folded(shown).isdisjoint(_folded(row))


def _folded(row):
    return {word.casefold() for word in (row["argument"], *row["answers"])}


def abstractive_prompt(task: Task, row: dict, demonstrations: list[dict], template: int = 0) -> str:
    """The prompt of the paper's section 3 in a template, cut before the answer and its space, if any."""
    text = task.templates[template]
    shown = [_fill(text, r, r["answers"][0]) for r in demonstrations]
    return task.separator.join([*shown, _question(text, row)])


def extractive_prompt(task: Task, row: dict, demonstrations: list[dict], template: int = 0) -> str:
    """The twin whose answer stands in the prompt (paper section 3, Extractive twins)."""
    text = task.templates[template]
    if "answer" in task.extractive:
        pattern = task.extractive["answer"]
        shown = [_fill(text, r, _fill(pattern, r, "")) for r in demonstrations]
        return task.separator.join([*shown, _question(text, row)])
    facts = [_fill(task.extractive["prefix"], r, r["answers"][0]) for r in [*demonstrations, row]]
    return "".join(facts) + abstractive_prompt(task, row, demonstrations, template)


def extractive_answers(task: Task, row: dict) -> list[str]:
    """What the extractive twin is right to say."""
    if "answer" in task.extractive:
        return [_fill(task.extractive["answer"], row, "")]
    return row["answers"][:1]


def novel_prompt(row: dict, words: list[str], generator: random.Random, space: str = " ") -> str:
    """Three random words and the argument, thrice, cut before the last argument (paper section 3).

    Where the task's templates have no space before a word, each argument begins a line: there it is
    written as in them, and no tokenizer joins it to the word before.
    """
    context = " ".join(generator.sample(words, 3))
    between = space or "\n"
    asked = f"{context}{between}{row['argument']}{between}"
    return f"{asked}{asked}{context}" + ("" if space else between)


def stands_in(words: list[str], text: str) -> bool:
    """Whether one of the words stands in a text as a whole word, without regard to case."""
    pattern = "|".join(
        (r"(?<!\w)" if _spaced(word[0]) else "")
        + re.escape(word)
        + (r"(?!\w)" if _spaced(word[-1]) else "")
        for word in words
    )
    return re.search(pattern, text, re.IGNORECASE) is not None


def _spaced(letter):
    return unicodedata.name(letter, "").split(" ")[0] not in UNSPACED


def _fill(template, row, answer):
    return template.format_map(row | {"answer": answer})


def _question(template, row):
    return _fill(template.split("{answer}")[0], row, "").rstrip(" ")


def random_words() -> list[str]:
    """Common words for random contexts; none is an argument or answer of a packaged task."""
    return (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
