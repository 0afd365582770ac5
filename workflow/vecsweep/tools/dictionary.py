"""results/README.md: what every table, column and tensor of results/ is, from tables.yaml."""

from pathlib import Path

from vecsweep import tables
from vecsweep.files import replacing


def arguments(parser):
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/README.md"),
        help="Markdown to write [results/README.md]",
    )


def run(args):
    """Write the description."""
    with replacing(args.output) as temporary:
        temporary.write_text(tables.readme(), "utf-8")
    print(f"{args.output}: {len(tables.dictionary()['tables'])} tables")
