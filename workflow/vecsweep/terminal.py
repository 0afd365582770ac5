"""What the terminal shows: colours, bars, times, the end of a job's log, names that are not there."""

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vecsweep import Problem

# As in the figures.
ARGUMENT, ANSWER, APPLIED = "#D55E00", "#0173B2", "#029E73"
PIPE_WIDTH = 120  # of what is written into a file or a pipe
BAR_WIDTH = 24


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """A type of options for argparse: a number from `least` on."""

    def number(text):
        found = kind(text)
        if not found >= least:
            raise argparse.ArgumentTypeError(f"{text} is no number from {least} on")
        return found

    number.__name__ = kind.__name__  # as argparse says it where the text is none
    return number


def console(**options):
    """A rich console on stdout; without a terminal it writes plain text."""
    from rich.console import Console

    found = Console(highlight=False, **options)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """A bar of `width` characters; it is full only at 1."""
    full = min(int(fraction * width), width)
    return "━" * full + "·" * (width - full)


def duration(seconds: float) -> str:
    """A time for people: 42 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + f" {seconds % 60} s" * (seconds % 60 > 0)
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def rough(seconds: float) -> str:
    """A time that is a guess, without digits that it does not have: 40 s, 3 min, 1.5 h."""
    if seconds < 60:
        return f"{max(5, round(seconds / 5) * 5)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def known(what: str, name: str, names: list[str], where: str) -> None:
    """Problem unless `name` is one of `names`; it says which are close, or which there are."""
    if name in names:
        return
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if close:
        hint = f"did you mean '{close[0]}'?"
    else:
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        hint = f"there are {', '.join(names[:12])}{more}" if names else "run the sweep first: make"
    raise Problem(f"no {what} '{name}' in {where}; {hint}")


def tail(log: str | Path, size: int = 8192) -> list[str]:
    """The last lines of a log that are not empty; none if there is no log."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_error(line: str, stage: str) -> bool:
    """Whether a log's line is that of a stage that gave up, or the last of a traceback."""
    return bool(re.match(rf"vecsweep {stage}: |[\w.]*(Error|Exception|Killed)\b", line))


def reasons(log: str | Path, stage: str) -> list[str]:
    """Why a job failed, by the end of its log: a line for each command that was refused."""
    found: list[str] = []
    for line in reversed(tail(log)):
        if not is_error(line, stage) or (found and not line.startswith("vecsweep ")):
            break
        found.insert(0, line.removeprefix(f"vecsweep {stage}: "))
    return found
