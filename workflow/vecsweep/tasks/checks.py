"""Checks of a task file: its keys by `schemas/task.schema.yaml`, then what would fail in silence."""

import string

import jsonschema

from vecsweep import Problem, nearest
from vecsweep.files import PACKAGE, packaged

SCHEMA = PACKAGE / "schemas" / "task.schema.yaml"
CALLED = {"string": "text", "array": "a list", "object": "a mapping"}


def fields(text: str) -> list[str]:
    """The columns in a template's braces, in order; ValueError if it is no template."""
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def check_keys(content: dict, path) -> None:
    """Problem at the first key of a task file that is unknown, missing or of another type."""
    rules = packaged(SCHEMA)
    errors = jsonschema.Draft202012Validator(rules).iter_errors(content)
    # An unknown key often makes a needed one missing: name the unknown key first.
    order = ("additionalProperties", "required")
    rank = {name: place for place, name in enumerate(order)}
    first = min(errors, key=lambda e: rank.get(e.validator, len(order)), default=None)
    if first:
        raise Problem(f"{path}: {_line(first)}")


def _line(error) -> str:
    where = " > ".join(str(part + 1 if isinstance(part, int) else part) for part in error.path)
    if error.validator == "additionalProperties":
        allowed = list(error.schema["properties"])
        key = next(k for k in error.instance if k not in allowed)
        place = f"{where}: " if where else ""
        return (
            f"{place}unknown key '{key}'{nearest(key, allowed)}; allowed are {', '.join(allowed)}"
        )
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"the key '{missing}' is missing; add it ({_meaning(missing)})"
    if error.validator == "type":
        words = not isinstance(error.instance, (dict, list)) and error.validator_value == "string"
        hint = "put words in quotes" if words else f"it holds {_meaning(*error.path)}"
        return f"{where} must be {CALLED[error.validator_value]}, not {error.instance!r}; {hint}"
    if error.validator == "enum":
        known = error.validator_value
        said = error.instance
        return f"{where} '{said}' is none of {', '.join(known)}{nearest(said, known)}; write one"
    if error.validator == "maxProperties":
        several = ", ".join(error.schema["properties"])
        return f"{where} has one of the keys {several}, not several; remove one"
    if error.validator == "maxLength":
        most, length = error.validator_value, len(error.instance)
        return f"{where} has {length} letters, of which {most} fit a figure; shorten it"
    return (
        f"{where}: must not be empty or name a thing twice, it is {error.instance!r}; it holds "
        f"{_meaning(*error.path)}"
    )


def _meaning(*path) -> str:
    """What a key of a task file holds, by its schema."""
    rules = packaged(SCHEMA)
    found = ""
    for key in path:
        rules = rules.get("properties", {}).get(key) or rules.get("items", {})
        found = rules.get("description", found)
    return found or f"the relation's {path[-1]}"


def space_of(template: str) -> str:
    """What stands between a template's prompt and its answer: a space, or nothing."""
    return " " if template.split("{answer}")[0].endswith(" ") else ""


def check_task(task, path) -> None:
    """Problem at what is wrong between a task's texts and its rows."""
    if len(task.rows) < 2:
        raise Problem(
            f"{task.data}: one row is no relation: a demonstration needs another one; add rows"
        )
    if len({row["argument"] for row in task.rows}) < 2:
        only = task.rows[0]["argument"]
        raise Problem(f"{task.data}: all rows have the argument '{only}'; add rows with others")
    varies = {name for name in task.rows[0] if len({str(row[name]) for row in task.rows}) > 1}
    for text in task.templates:
        _check_columns(text, task, path)
        _check_template(text, varies, path)
    if len(set(map(space_of, task.templates))) > 1:
        raise Problem(
            f"{path}: some templates have a space before {{answer}}, some have none: a vector of one "
            "is tried on answers of the other; write all alike"
        )
    if "prefix" in task.extractive:
        text = task.extractive["prefix"]
        _check_columns(text, task, path)
        if "answer" not in fields(text):
            raise Problem(
                f'{path}: extractive prefix "{text}" has no {{answer}}: an extractive prompt '
                "must hold it; add it, or leave extractive out"
            )
    if "answer" in task.extractive:
        text = task.extractive["answer"]
        _check_columns(text, task, path)
        if not varies & set(fields(text)):
            raise Problem(
                f'{path}: extractive answer "{text}" is the same for every row; it is text with '
                "{argument} or another column"
            )
    _check_demonstrations(task, path)
    _check_group(task, path)


def _check_columns(text, task, path):
    """Each {name} is a column, and the text can be filled in."""
    try:
        names = fields(text)
    except ValueError as error:
        raise Problem(
            f'{path}: "{text}" is no template: {error}; a column stands in braces, as {{argument}}, '
            "and a brace is written twice, as {{"
        ) from error
    columns = [name for name in task.rows[0] if name != "answers"]
    for name in names:
        if name not in ("answer", *columns):
            raise Problem(
                f"{path}: '{{{name}}}' in \"{text}\" is no column of its data"
                f"{nearest(name, ('answer', *columns))}; it has {', '.join(columns)}"
            )
    for name in names:
        if f"{{{name}}}" not in text:
            raise Problem(
                f'{path}: "{text}" formats {{{name}}}; write it in the text without : or !'
            )


def _check_template(text, varies, path):
    """What a model reads must name the argument, and end before {answer}."""
    names = fields(text)
    if "answer" not in names:
        raise Problem(
            f'{path}: the template "{text}" has no {{answer}}; a prompt ends at it: add it'
        )
    if names.count("answer") > 1 or text.count("{answer}") > 1:
        raise Problem(
            f'{path}: the template "{text}" has {{answer}} twice; a prompt ends at it: remove one'
        )
    if not varies & set(names[: names.index("answer")]):
        if varies & set(names):
            raise Problem(
                f'{path}: in the template "{text}" {{answer}} stands before {{argument}}: a prompt '
                "ends at {answer}; turn the sentence round"
            )
        raise Problem(
            f'{path}: the template "{text}" asks the same for every row; it needs {{argument}}'
        )
    if text.split("{answer}")[0].endswith("  "):
        raise Problem(
            f'{path}: in the template "{text}" there are several spaces before {{answer}}; write one, '
            "or none where the language has none"
        )


def _check_demonstrations(task, path):
    arguments = {row["argument"] for row in task.rows}
    for shown in task.demonstrations:
        if shown not in arguments:
            raise Problem(
                f"{path}: the demonstration '{shown}' is no argument in its data"
                f"{nearest(shown, arguments)}; name one of its rows"
            )


def _check_group(task, path):
    group = task.out_of_domain.get("group")
    groups = sorted({row.get("group") or "" for row in task.rows} - {""})
    if group is not None and group not in groups:
        raise Problem(
            f"{path}: no row is of the out_of_domain group '{group}'; the column group of its data "
            f"has {', '.join(groups) or 'nothing'}{nearest(group, groups)}; name one of those"
        )
