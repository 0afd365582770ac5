"""Stage `figures`."""

from vecsweep.figures import run  # noqa: F401
