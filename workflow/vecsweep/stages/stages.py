"""Stage `stages`: argument formation, function application, saturation of every prompt.

The definitions are in `sql/stages.sql`, in words and in SQL.
"""

import duckdb
import pyarrow as pa

from vecsweep import tables
from vecsweep.files import PACKAGE
from vecsweep.layout import STAGES

COLUMNS = ["model", "task", "prompt_set", "prompt_id", "layer", "site"]
COLUMNS += ["argument_rank", "answer_rank"]


def run(args):
    """Write table `stages`: a row for each prompt of one model and task."""
    lens = pa.concat_tables([tables.read("lens", path, COLUMNS) for path in args.lens])
    tables.write("stages", stages_of(lens), args.output, {"step_version": STAGES["stages"].version})


def stages_of(lens: pa.Table) -> pa.Table:
    """Table `stages` from the wide lens rows of all layers."""
    with duckdb.connect() as connection:
        connection.register("lens", lens)
        query = (PACKAGE / "sql" / "stages.sql").read_text("utf-8")
        return connection.sql(query).to_arrow_table()
