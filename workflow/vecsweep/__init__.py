"""vecsweep: sweeps of language models over relational tasks, layer by layer."""

import difflib

__version__ = "0.1.0"


class Problem(Exception):
    """Bad input: the message is one line that says what, where and how to mend it."""


def nearest(said, known) -> str:
    """(did you mean 'capitals'?) - the one of `known` that is most like what was said, if any is."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(said), names, 1)
    if not close:  # only its capitals may differ
        close = [name for name in names if name.casefold() == str(said).casefold()]
    return f" (did you mean '{close[0]}'?)" if close else ""
