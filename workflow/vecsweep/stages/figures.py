"""Stage `figures`: one figure, from the database alone; the same database gives the same bytes."""

import re

import duckdb
import matplotlib

from vecsweep import Problem
from vecsweep.figures import FIGURES, drawer
from vecsweep.figures.drawing import style
from vecsweep.files import replacing


def named(svg: str, name: str) -> str:
    """An SVG whose ids begin with the figure's name: several can stand in one page."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)


def run(args):
    """Draw the figure that `args.settings` names, as SVG (text as text) and PNG (300 dpi)."""
    name = args.settings["name"]
    if name not in FIGURES:
        raise Problem(f"no figure '{name}'; there are {', '.join(FIGURES)}")
    try:
        # One thread gives rows in one order, and equal figures are equal files. Figures are drawn
        # on the login node of a cluster: they must not take its memory.
        limits: dict = {"threads": 1, "memory_limit": "2GB"}
        connection = duckdb.connect(str(args.database), read_only=True, config=limits)
    except duckdb.Error as error:
        raise Problem(f"cannot read {args.database}: {' '.join(str(error).split())}") from error
    with connection, matplotlib.rc_context(style()):
        try:
            figure = drawer(name)(connection)
        except duckdb.Error as error:
            # A table that is not there: the disk was full when an older vecsweep closed it.
            if not isinstance(error, duckdb.CatalogException) and "Corrupt" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise Problem(f"{args.database} is damaged ({reason}); delete it, run again") from error
        # Without dates and versions, so that equal figures are equal files.
        with replacing(args.svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
            temporary.write_text(named(temporary.read_text("utf-8"), name), "utf-8")
        with replacing(args.png) as temporary:
            figure.savefig(temporary, format="png", dpi=300, metadata={"Software": None})
