"""vecsweep: sweeps of language models over relational tasks, layer by layer.

One module a stage; `python -m vecsweep STAGE --help` runs one by hand.
"""

__version__ = "0.1.0"

# A changed meaning bumps the number and reruns the stage; an edited comment reruns nothing.
STEP_VERSIONS = {
    "models": 1,
    "preshard": 1,
    "prompts": 1,
    "states": 1,
    "lens": 1,
    "stages": 1,
    "ovectors": 1,
    "interventions": 1,
    "selection": 1,
    "ablations": 1,
    "summary": 1,
    "figures": 1,
}


class Problem(Exception):
    """Bad input: the message is one line that says what, where and how to mend it."""
