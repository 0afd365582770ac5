"""The config: checked against its schema, defaults filled in, before any job starts."""

import copy
import difflib
from pathlib import Path

import jsonschema
import yaml

from vecsweep import Problem

SCHEMA = Path(__file__).parent / "schemas" / "config.schema.yaml"


def checked(config: dict, schema_path=SCHEMA) -> dict:
    """A copy of `config` with the schema's defaults; Problem at its first mistake."""
    schema = yaml.safe_load(Path(schema_path).read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(config)
    # An unknown key often makes a required one missing: name the unknown key first.
    errors = sorted(
        errors, key=lambda e: (e.validator != "additionalProperties", list(map(str, e.path)))
    )
    if errors:
        raise Problem(_line(errors[0]))
    config = copy.deepcopy(config)
    _fill_defaults(config, schema)
    for name, model in config["models"].items():
        if model["preshard"] and model["shards"] == 1:
            raise Problem(f"config, models > {name}: preshard: true needs shards: 2 or more")
        if model["offload"] and model["engine"] in ("single", "tensor"):
            engine = model["engine"]
            raise Problem(
                f"config, models > {name}: engine: {engine} cannot offload; write engine: zero or auto"
            )
    return config


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
