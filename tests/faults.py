"""The table of faults in docs/cluster.md, made by the tests that cause them.

A test notes the fault, what a user sees, and after how many seconds. It fails if docs/measured/faults.csv
says anything else of it (but for the seconds). With VECSWEEP_FAULTS=1 it writes its row there instead;
`python tests/faults.py` puts all rows into the docs.
"""

import csv
import fcntl
import os
import re
import tempfile
from pathlib import Path

REPO = Path(__file__).parent.parent
TABLE = REPO / "docs" / "measured" / "faults.csv"
DOCS = REPO / "docs" / "cluster.md"
COLUMNS = {
    "fault": "what",
    "sees": "what you see",
    "seconds": "noticed after",
    "afterwards": "tables afterwards",
}
# In what a program says: a number, one word, anything.
WILD = {r"\bN\b": r"\\d+", r"\bX\b": r"\\S+", r"\\\.\\\.\\\.": ".*"}


def note(fault, sees, said, seconds=None, afterwards="identical"):
    """Note a fault; what stands between `` in `sees` must stand in `said`, the programs' output.

    `seconds`: measured ones, or words; `afterwards`: what the tables are, as the test sees too.
    """
    for words in re.findall("`(.+?)`", sees):
        pattern = re.escape(words)
        for mark, wild in WILD.items():
            pattern = re.sub(mark, wild, pattern)
        assert re.search(pattern, said), (words, said[-6000:])
    if seconds is None or isinstance(seconds, str):
        took = seconds or ""
    else:
        took = f"{seconds:.0f} s"
    row = dict(zip(COLUMNS, (fault, sees, took, afterwards)))
    if "VECSWEEP_FAULTS" in os.environ:
        put(row)
        return
    (known,) = (one for one in rows() if one["fault"] == fault) or [None]
    measured = re.fullmatch(r"\d+ s", took)
    same = known | {"seconds": took} if measured else known
    assert same == row and bool(measured) == bool(re.fullmatch(r"\d+ s", known["seconds"]))


def rows() -> list[dict]:
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def put(row):
    """Write a row, in the place of what is known of its fault."""
    with open(Path(tempfile.gettempdir()) / "vecsweep-faults.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {one["fault"]: one for one in (rows() if TABLE.exists() else [])}
        found[row["fault"]] = row
        with open(TABLE, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found.values())


def table() -> str:
    """All rows, as the docs have them."""
    lines = [COLUMNS.values(), ["---"] * len(COLUMNS), *(row.values() for row in rows())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts(text) -> list[str]:
    """What stands before, between and behind the marks of the table."""
    before, begin, rest = text.partition("<!-- faults -->\n")
    between, end, behind = rest.partition("<!-- end of faults -->")
    return [before + begin, between, end + behind]


if __name__ == "__main__":
    before, _, behind = parts(DOCS.read_text())
    DOCS.write_text(before + table() + behind)
