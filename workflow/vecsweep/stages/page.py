"""Stage `page`: `index.html`, one file that needs no network, from the database and the figures."""

import duckdb

from vecsweep import Problem, page
from vecsweep.files import replacing


def run(args):
    """Write the page of findings: first screen, prompts by layer, figures with captions, tables."""
    try:
        # As figures: one order of rows, and a login node's memory.
        limits: dict = {"threads": 1, "memory_limit": "2GB"}
        connection = duckdb.connect(str(args.database), read_only=True, config=limits)
    except duckdb.Error as error:
        raise Problem(f"cannot read {args.database}: {' '.join(str(error).split())}") from error
    with connection:
        try:
            text = page.made(connection, args.figures, args.captions)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            lacks = str(error).splitlines()[0]
            raise Problem(
                f"{args.database} is of an older vecsweep: {lacks}; make it anew"
            ) from error
    with replacing(args.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
