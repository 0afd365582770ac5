"""The config: read, checked against its schema, defaults filled in, before any job starts."""

import copy
import difflib
from pathlib import Path

import jsonschema
import yaml

from vecsweep import Problem
from vecsweep.files import PACKAGE

SCHEMA = PACKAGE / "schemas" / "config.schema.yaml"
LISTS = ("interventions.tasks", "ablations.tasks", "ablations.twins", "swaps.tasks")


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the first one would be lost in silence."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key '{key.value}' stands here twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path) -> dict:
    """The config in a YAML file, as written; Problem if it cannot be read or names a key twice."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise Problem(f"{path} holds no keys")
    return content


def load(path) -> dict:
    """The checked config in a YAML file, defaults filled in."""
    return checked(read(path))


def schema() -> dict:
    """The config's JSON schema, with a description and a default for each key."""
    return yaml.safe_load(SCHEMA.read_text())


def checked(config: dict) -> dict:
    """A copy of `config` with the schema's defaults; Problem at its first mistake."""
    rules = schema()
    errors = jsonschema.Draft202012Validator(rules).iter_errors(config)
    # An unknown key often makes a required one missing: name the unknown key first.
    first = sorted(
        errors, key=lambda e: (e.validator != "additionalProperties", list(map(str, e.path)))
    )
    if first:
        raise Problem(_line(first[0]))
    config = copy.deepcopy(config)
    _fill_defaults(config, rules)
    for name, model in config["models"].items():
        _check_model(name, model)
    for section in ("models", "tasks"):
        _check_names(section, config[section])
    for listed in LISTS:
        section, key = listed.split(".")
        for task in config[section][key] or []:
            if task not in config["tasks"]:
                raise Problem(
                    f"config, {section} > {key}: task '{task}' is in a list, but not under tasks: add it"
                )
    return config


def _check_model(name, model):
    if model["preshard"] and model["shards"] == 1:
        raise Problem(f"config, models > {name}: preshard: true needs shards: 2 or more")
    if model["offload"] and model["engine"] in ("single", "tensor"):
        engine = model["engine"]
        raise Problem(
            f"config, models > {name}: engine: {engine} cannot offload; write engine: zero or auto"
        )


def _check_names(section, names):
    """Problem if two names are one on a disk that does not tell capitals apart."""
    seen: dict[str, str] = {}
    for name in names:
        if other := seen.get(name.casefold()):
            raise Problem(
                f"config, {section}: '{other}' and '{name}' would share their results; rename one"
            )
        seen[name.casefold()] = name


def _line(error) -> str:
    where = " > ".join(map(str, error.absolute_path)) or "top level"
    if error.validator == "additionalProperties":
        allowed = list(error.schema["properties"])
        key = next(k for k in error.instance if k not in allowed)
        close = difflib.get_close_matches(str(key), allowed, 1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        return f"config, {where}: unknown key '{key}'{hint}; allowed are {', '.join(allowed)}"
    return f"config, {where}: {error.message}"


def _fill_defaults(value, schema):
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    for key, inner in known.items():
        if "default" in inner and key not in value:
            value[key] = copy.deepcopy(inner["default"])
    for key, content in value.items():
        _fill_defaults(content, known.get(key, schema.get("additionalProperties") or {}))
