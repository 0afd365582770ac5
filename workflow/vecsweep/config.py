"""The config: read, checked against its schema, defaults filled in, before any job starts."""

import copy
import math

import jsonschema
import yaml

from vecsweep import Problem, nearest, series
from vecsweep.files import PACKAGE, packaged, text_in

SCHEMA = PACKAGE / "schemas" / "config.schema.yaml"
CONTENDERS = ("contenders.task_vectors", "contenders.function_vectors")
LISTS = (
    "interventions.tasks",
    *CONTENDERS,
    "ablations.tasks",
    "ablations.twins",
    "swaps.tasks",
    "patching.tasks",
    "relational.tasks",
    "tuned.tasks",
)
# The keys that say where a model is, by its source.
SOURCES = {"package": ("files",), "local": ("path",), "hub": ("id", "revision")}
CALLED = {
    "integer": "a whole number",
    "number": "a number, with a point before an exponent",
    "string": "text, in quotes if it looks like a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "keys and values, or {} for none",
    "null": "null",
}
# How to mend what breaks a rule of the schema.
CURES = {
    "required": "add it",
    "enum": "write one of them",
    "const": "write that",
    "pattern": "write it in that form",
    "minProperties": "name at least one",
    "uniqueItems": "name each once",
}
NUMBERS = {"integer": int, "number": (int, float)}


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


def parsed(text: str, path):
    """What a YAML text holds; Problem if it is none or names a key twice. `path` is for messages."""
    try:
        return yaml.load(text, UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-13-45 is no date
        said = " ".join(str(error).split())
        raise Problem(f"cannot read {path}: not YAML: {said}; correct it there") from error


def read(path) -> dict:
    """The config in a YAML file, as written; Problem if it cannot be read or names a key twice."""
    content = parsed(text_in(path), path)
    if not isinstance(content, dict):
        raise Problem(f"{path} holds no keys; write models: and tasks: into it")
    return content


def load(path) -> dict:
    """The checked config in a YAML file, defaults filled in."""
    return checked(read(path))


def schema() -> dict:
    """The config's JSON schema, with a description and a default for each key."""
    return packaged(SCHEMA)


def checked(config: dict) -> dict:
    """A copy of `config` with the schema's defaults; Problem at its first mistake.

    An entry's `revisions` are models of their own in it (`series.expanded`).
    """
    rules = schema()
    errors = VALIDATOR(rules).iter_errors(config)
    # An unknown key often makes a required one missing: name the unknown key first.
    first = sorted(
        errors, key=lambda e: (e.validator != "additionalProperties", list(map(str, e.path)))
    )
    if first:
        raise Problem(_line(first[0], rules))
    config = copy.deepcopy(config)
    _fill_defaults(config, rules)
    for name, model in config["models"].items():
        _check_model(name, model)
        _check_chat(name, model, config)
    config["models"] = series.expanded(config["models"])
    if config["relational"]["tasks"] != []:
        _check_one_process(config["models"])
        _check_below(config["models"])
    for section in ("models", "tasks"):
        _check_names(section, config[section])
    _check_lists(config, rules)
    return config


def _is_number(kind):
    def check(_, value):
        right = isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
        return right and math.isfinite(value)  # 3.0 is no number of layers, nan no factor

    return check


_DRAFT = jsonschema.Draft202012Validator
VALIDATOR = jsonschema.validators.extend(
    _DRAFT,
    type_checker=_DRAFT.TYPE_CHECKER.redefine_many({kind: _is_number(kind) for kind in NUMBERS}),
)


def _check_model(name, model):
    source = model["source"]
    for other, keys in SOURCES.items():
        for key in keys:
            if key in model and other != source:
                raise Problem(
                    f"config, models > {name}: '{key}' says nothing with source: {source}; remove it, "
                    f"or write source: {other}"
                )
    if model["preshard"] and model["shards"] == 1:
        raise Problem(
            f"config, models > {name}: preshard: true needs shards: 2 or more; write both"
        )
    if model["offload"] and model["engine"] in ("single", "tensor"):
        engine = model["engine"]
        raise Problem(
            f"config, models > {name}: engine: {engine} cannot offload; write engine: zero or auto"
        )
    if model["engine"] in ("tensor", "zero") and model["shards"] == 1 and not model["offload"]:
        raise Problem(
            f"config, models > {name}: engine: {model['engine']} needs shards: 2 or more; write them, "
            "or engine: auto"
        )
    if "quantized" in model and (model["shards"] > 1 or model["offload"]):
        raise Problem(
            f"config, models > {name}: quantized weights are not split or offloaded; write shards: 1, "
            "or remove quantized"
        )
    if model["engine"] == "single" and model["shards"] > 1:
        raise Problem(
            f"config, models > {name}: engine: single takes one process, not shards: "
            f"{model['shards']}; write engine: auto or shards: 1"
        )


def _check_one_process(models):
    """Problem if a model is run in a way that no gradient can be taken through."""
    for name, model in models.items():
        if model["shards"] > 1 or model["offload"] or model["engine"] in ("tensor", "zero"):
            raise Problem(
                f"config, relational > tasks: Jacobians need {name} in one process, without offload; "
                "write relational: {tasks: []}, or shards: 1 and engine: auto there"
            )


def _check_below(models):
    """Problem if a model has no layer below its last block's output."""
    for name, model in models.items():
        if model["layers"] == 1:
            raise Problem(
                f"config, relational > tasks: {name} has one layer, and none below for a Jacobian to "
                "start from; write relational: {tasks: []}, or leave the model out"
            )


def _check_chat(name, model, config):
    if not model["chat"]:
        return
    if config["prompts"]["common"] and len(config["models"]) > 1:
        raise Problem(
            f"config, models > {name}: chat: true has no prompt in common with other models; "
            "write prompts: {common: false}"
        )
    if any(listed != [] for listed in config["contenders"].values()):
        raise Problem(
            f"config, models > {name}: chat: true and contenders, whose many demonstrations are not "
            "turns; write contenders: {task_vectors: [], function_vectors: []}"
        )


def _check_names(section, names):
    """Problem if two names are one on a disk that does not tell capitals apart."""
    seen: dict[str, str] = {}
    for name in names:
        if name != name.strip():  # a pattern's end allows a line's end
            raise Problem(f"config, {section}: the name {name!r} ends in a space; remove it")
        if other := seen.get(name.casefold()):
            raise Problem(
                f"config, {section}: '{other}' and '{name}' would share their results; rename one"
            )
        seen[name.casefold()] = name


def _check_lists(config, rules):
    """Problem if a list names a task that the config has not, or that no job would take."""
    known = config["tasks"]
    lists = LISTS
    if (
        config["interventions"]["rivals"]
        != (rules["properties"]["interventions"]["properties"]["rivals"]["default"])
    ):  # those of the default need not be in the config
        lists += ("interventions.rivals",)
    for listed in lists:
        section, key = listed.split(".")
        for task in config[section][key] or []:
            if task not in known:
                raise Problem(
                    f"config, {section} > {key}: task '{task}' is in a list, but not under tasks"
                    f"{nearest(task, known)}: add it there, or remove it here"
                )
    injected = config["interventions"]["tasks"]
    for listed in CONTENDERS:
        section, key = listed.split(".")
        for task in config[section][key] or []:
            if injected is not None and task not in injected:
                raise Problem(
                    f"config, {section} > {key}: task '{task}' is not in interventions > tasks, with "
                    "whose o-vectors they are compared; add it there, or remove it here"
                )
    ablated = config["ablations"]["tasks"]
    for task in config["ablations"]["twins"] or []:
        if ablated is not None and task not in ablated:
            raise Problem(
                f"config, ablations > twins: task '{task}' is not in ablations > tasks, of which twins "
                "are some; add it there, or remove it here"
            )


def _line(error, rules) -> str:
    where = " > ".join(map(str, error.absolute_path)) or "top level"
    if error.validator == "additionalProperties":
        allowed = list(error.schema["properties"])
        key = next(k for k in error.instance if k not in allowed)
        hint = nearest(key, allowed)
        return f"config, {where}: unknown key '{key}'{hint}; allowed are {', '.join(allowed)}"
    if "propertyNames" in error.absolute_schema_path:
        return (
            f"config, {where}: the name {_short(error.message)}; a name is letters, digits, _ and -, "
            "in quotes if it is a number"
        )
    key, meaning = _meaning(error.absolute_path, rules)
    message = error.message.replace(repr(error.instance), _short(repr(error.instance)))
    cure = CURES.get(error.validator, "write one that is allowed")
    if error.validator == "type":
        kinds = error.validator_value
        kinds = [kinds] if isinstance(kinds, str) else kinds
        cure = f"write {' or '.join(CALLED[kind] for kind in kinds)}"
    if error.validator in ("minItems", "maxItems"):
        bound = "least" if error.validator == "minItems" else "most"
        count = {1: "one", 2: "two"}.get(error.validator_value, error.validator_value)
        cure = f"name at {bound} {count}"
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        key, meaning = _meaning([*error.absolute_path, missing], rules)
    hint = nearest(error.instance, error.validator_value) if error.validator == "enum" else ""
    said = f" ({key}: {meaning})" if meaning else ""
    return f"config, {where}: {_short(message, 200)}{hint}; {cure}{said}"


def _short(text, most=80):
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def _meaning(path, rules):
    """(key, description) of the innermost key of a path that the schema describes."""
    found = ("", "")
    for key in path:
        if isinstance(key, int):
            rules = rules.get("items", {})
            continue
        known = rules.get("properties", {})
        rules = known[key] if key in known else rules.get("additionalProperties") or {}
        if "description" in rules:
            found = (key, " ".join(rules["description"].split()))
    return found


def _fill_defaults(value, schema):
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    for key, inner in known.items():
        if "default" in inner and key not in value:
            value[key] = copy.deepcopy(inner["default"])
    for key, content in value.items():
        _fill_defaults(content, known.get(key, schema.get("additionalProperties") or {}))
