"""Stage `stages`: argument formation, function application, saturation of every prompt.

The definitions are in `sql/stages.sql`, in words and in SQL.
"""

from pathlib import Path

from vecsweep import STEP_VERSIONS
from vecsweep.files import PACKAGE, read_table, write_table


def arguments(parser):
    parser.add_argument("--lens", type=Path, nargs="+", required=True, help="Parquet, all layers")
    parser.add_argument("--output", type=Path, required=True, help="Parquet to write")


def run(args):
    """Write table `stages`: a row for each prompt of one model and task."""
    import pyarrow as pa

    columns = ["model", "task", "prompt_set", "prompt_id", "layer", "site"]
    columns += ["argument_rank", "answer_rank"]
    lens = pa.concat_tables([read_table(path, columns=columns) for path in args.lens])
    write_table(stages_of(lens), args.output, {"step_version": STEP_VERSIONS["stages"]})


def stages_of(lens):
    """Table `stages` from the wide lens rows of all layers, a pyarrow table."""
    import duckdb

    connection = duckdb.connect()
    connection.register("lens", lens)
    query = (PACKAGE / "sql" / "stages.sql").read_text()
    return connection.sql(query).to_arrow_table()
