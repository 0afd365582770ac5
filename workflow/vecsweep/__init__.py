"""vecsweep: sweeps of language models over relational tasks, layer by layer."""

__version__ = "0.1.0"


class Problem(Exception):
    """Bad input: the message is one line that says what, where and how to mend it."""
