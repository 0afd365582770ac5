"""What the sweep found, in three lines, from table `claims`, and where its page is.

In how many cells a vector lifts the answer, as the page's first screen has it, and in how many an
o-vector does; the o-vector that does so most surely; what is stronger.
"""

import re
from pathlib import Path

from vecsweep import Problem, terminal

PAGES = ("index.html", "report.html")
ONE = re.compile(r"(?<=\.) (?=Stronger than it:|Next to it:|Among all answers)")
# An o-vector's sentence, and the numbers that it was made of.
QUERY = """
SELECT c.model, c.task, c.sentence, enough(e.prompts) AS enough, e.rise_low > 0 AS lifts, e.rise_low,
       s.method AS rival, s.difference > 0 AND s.p_holm < 0.05 AS beaten
FROM claims AS c
JOIN effects AS e ON (e.model, e.ovector_task, e.task, e.domain, e.method)
                   = (c.model, c.task, c.task, 'in', 'o-vector')
JOIN strongest AS s ON (s.model, s.ovector_task, s.task, s.domain)
                     = (e.model, e.ovector_task, e.task, e.domain)
WHERE c.claim = 'o-vector' AND c.domain = 'in'
ORDER BY enough DESC, lifts DESC, beaten, e.rise_low DESC, c.model, c.task
"""
# As the page's headline counts, by model: o-vectors, and vectors that need no donor.
LIFTED = """
SELECT count(*) FILTER (lift = 'yes'), count(*) FROM findings
WHERE lift NOT IN ('not injected', 'no vector')
"""


def arguments(parser):
    parser.add_argument("--results", type=Path, default=Path("results"), help="[results]")


def run(args):
    """Print the finding and where its page is."""
    import duckdb

    path = args.results / "summary.duckdb"
    if not path.exists():
        raise Problem(f"no {path}; run the sweep first: make")
    console = terminal.console()
    try:
        with duckdb.connect(str(path), read_only=True) as database:
            answer = database.execute(QUERY)
            names = [column[0] for column in answer.description]
            rows = [dict(zip(names, row)) for row in answer.fetchall()]
            lifted = database.execute(LIFTED).fetchall()[0]
    except duckdb.Error as error:
        raise Problem(f"cannot read {path}: {' '.join(str(error).split())}") from error
    for line in finding(rows, *lifted):
        console.print(line, markup=False, soft_wrap=True)
    for page in PAGES:
        if (args.results / page).exists():
            console.print(f"Open {args.results / page}", markup=False, soft_wrap=True)
            break


def finding(rows: list[dict], lifted: int, tried: int) -> list[str]:
    """Three lines of what vectors do: counts, the surest o-vector, its strongest rival.

    `rows` are those of QUERY, the surest first; `lifted` and `tried` those of LIFTED.
    """
    counts = (
        "Models x tasks in which some vector surely lifts the answer in novel contexts: "
        f"{lifted} of {tried}"
    )
    if not rows:
        none = "o prompt of the tasks under `interventions` is a donor of an o-vector."
        return [f"{counts}.", f"N{none}"] if tried else [f"No finding: n{none}"]
    fair = [row for row in rows if row["enough"]]
    if not fair:
        first = rows[0]
        return [f"No finding yet. {first['model']}, {first['task']}: {first['sentence']}"]
    lifts = [row for row in fair if row["lifts"]]
    best = [row for row in lifts if not row["beaten"]]
    few = f"; {len(rows) - len(fair)} more have too few test prompts" * (len(fair) < len(rows))
    alone = f", and in {len(best)} of these nothing else is surely stronger" * bool(lifts)
    head = f"{counts}; an FFN's update does in {len(lifts)} of {len(fair)}{alone}{few}."
    said = ONE.split(fair[0]["sentence"])
    rival = " ".join(said[1:2]) or "No rival was tried."
    rows_named = f"table methods, rows o-vector and {fair[0]['rival']}"
    return [
        head,
        f"{fair[0]['model']}, {fair[0]['task']}: {said[0]}",
        f"{rival} ({rows_named})",
    ]
