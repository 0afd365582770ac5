"""Training checkpoints: an entry of the config with `revisions` is a model for each of them."""

import re

from vecsweep import Problem

# No model's own name has it, and paths, wildcards, Slurm and shells take it as it is.
MARK = "@"
LAST = "main"  # the one name without a number: what training ended with


def expanded(models: dict[str, dict]) -> dict[str, dict]:
    """The config's models, with a model NAME@REVISION for each revision of an entry.

    Revisions stand by step, in `series` is the entry's name, in `step` the number of training
    steps: None for `main`, and for entries without revisions. Problem if an entry's revisions
    cannot be told apart or put in order.
    """
    found: dict[str, dict] = {}
    for name, entry in models.items():
        shared = {key: value for key, value in entry.items() if key != "revisions"}
        if "revisions" not in entry:
            found[name] = shared | {"series": name, "step": None}
            continue
        _check(name, entry)
        commits = entry["revisions"]
        if isinstance(commits, list):
            commits = {revision: revision for revision in commits}
        for revision, step in ordered(name, list(commits)).items():
            own = {"series": name, "step": step}
            if entry["source"] == "hub":
                own["revision"] = commits[revision]
            else:
                own["path"] = folder_of(entry["path"], revision)
            found[f"{name}{MARK}{revision}"] = shared | own
    return found


def _check(name, entry):
    about = f"config, models > {name}"
    if entry["source"] == "package":
        raise Problem(f"{about}: 'revisions' needs source: hub or local; remove it")
    for key in ("revision", "sha256"):
        if key in entry:
            raise Problem(f"{about}: '{key}' is of one revision, not of several; remove it")
    if entry["source"] == "local" and not isinstance(entry["revisions"], list):
        raise Problem(
            f"{about}: commits are of the hub; with source: local write revisions as a list of "
            "sub-folders"
        )


def folder_of(path: str, revision: str) -> str:
    """A local revision's folder: below `path`, or where `{revision}` in it says."""
    if "{revision}" in path:
        return path.replace("{revision}", revision)
    return f"{path.rstrip('/')}/{revision}"


def ordered(name: str, revisions: list[str]) -> dict[str, int | None]:
    """{revision: step}, the first step first, `main` last; Problem if two are at one step."""
    steps: dict[str, int | None] = {}
    for revision in revisions:
        step = None if revision == LAST else step_of(revision)
        if step is None and revision != LAST:
            raise Problem(
                f"config, models > {name} > revisions: '{revision}' does not say its training step; "
                "name it step1000, or with no other number than the step"
            )
        other = next((one for one, number in steps.items() if number == step), None)
        if other:
            raise Problem(
                f"config, models > {name} > revisions: '{other}' and '{revision}' are both at step "
                f"{step}; remove one"
            )
        steps[revision] = step
    return dict(sorted(steps.items(), key=lambda item: (item[1] is None, item[1])))


def step_of(revision: str) -> int | None:
    """The training step in a revision's name; None if there is none, or it is not clear which.

    The number after the word step (`step1000`, `stage1-step1000-tokens3B`), else the only one
    (`checkpoint-1000`, `0001000`). A k behind it is a thousand (`step-50k`).
    """
    for word in ("step[-_]?", ""):
        found = re.findall(rf"{word}(\d+)(k?)(?![a-z0-9])", revision, re.IGNORECASE)
        if found:
            number, thousand = found[0]
            return int(number) * (1000 if thousand else 1) if len(found) == 1 else None
    return None
