"""The first screen: relations x models in words, from table `findings` and nothing else."""

import html
import json
from collections import Counter

METHODS = {
    "o-vector": "o-vector of one donor",
    "mean": "mean of the donors",
    "difference": "difference of means",
    "rival": "another task's mean",
    "unrelated": "FFN on random words",
    "random": "random vector",
    "zero": "zero (FFNs dropped)",
    "task vector": "task vector",
    "function vector": "function vector",
}
CONTROLS = ("rival", "unrelated", "random", "zero")
MODEL = """SELECT model, family, layers, parameters, dtype, source, revision, revisions
FROM models LEFT JOIN (SELECT model, revisions FROM last_models) USING (model)
ORDER BY parameters, series, step NULLS LAST, model"""
CURVES = """SELECT model, task, target, list(round(depth, 4) ORDER BY layer),
       list(round(reciprocal_rank, 3) ORDER BY layer), list(round(low, 3) ORDER BY layer),
       list(round(high, 3) ORDER BY layer)
FROM curves WHERE subset = 'correct' AND prompt_set = 'abstractive'
GROUP BY model, task, target ORDER BY model, task, target"""
METHOD = """SELECT model, task, method, vectors, prompts, source_layer, start_layer, end_layer, mode,
       reciprocal_rank_before, reciprocal_rank_after, reciprocal_rank_after_low,
       reciprocal_rank_after_high, p_holm, among_before, among_after, among_chance, transfer
FROM methods WHERE domain = 'in' AND method NOT IN ('neurons_all', 'directions_all')
ORDER BY model, task, reciprocal_rank_after DESC, method"""
CLAIM = 'SELECT model, task, domain, claim, "table", "rows", sentence FROM claims ORDER BY ALL'
TASK = """SELECT t.task, title, kind, injected, any_value(text) AS example
FROM tasks AS t
LEFT JOIN (SELECT task, arg_min(text, prompt_id) AS text FROM prompts
           WHERE prompt_set = 'abstractive' AND dropped IS NULL GROUP BY task) AS p ON t.task = p.task
GROUP BY t.task, title, kind, injected, place ORDER BY place"""


def records(connection, query: str) -> list[dict]:
    """The rows of a query as dicts."""
    found = connection.execute(query)
    names = [column[0] for column in found.description]
    # JSON has no NaN.
    return [
        {name: None if value != value else value for name, value in zip(names, row)}
        for row in found.fetchall()
    ]


def models(connection) -> list[dict]:
    """The models, smallest first, a series by step; `revisions` of the last one counts its series."""
    return records(connection, MODEL)


def tasks(connection) -> list[dict]:
    """The relations in the config's order, each with the text of one prompt."""
    return records(connection, TASK)


def rows(connection) -> list[dict]:
    """Table `findings`."""
    return records(connection, "FROM findings")


def curves(connection) -> list[list]:
    """[model, task, target, depths, means, lows, highs] of the prompts answered correctly."""
    return [list(row) for row in connection.execute(CURVES).fetchall()]


def methods(connection) -> list[dict]:
    """Every method on the in-domain test prompts, the strongest first."""
    return records(connection, METHOD)


def claims(connection) -> list[dict]:
    """Table `claims`."""
    return records(connection, CLAIM)


def label(method: str) -> str:
    """A method in words: neurons_10 -> 10 largest neurons of the o-vector."""
    basis, _, count = method.partition("_")
    if basis == "neurons":
        return (
            f"o-vector's {count} largest neurons" if count != "1" else "o-vector's largest neuron"
        )
    if basis == "directions":
        return f"o-vector along {count} direction{'s' * (count != '1')}"
    return METHODS.get(method, method)


def size(parameters: int) -> str:
    unit, sign = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / unit:.3g}\u00a0{sign}"


def number(value, sign="") -> str:
    """Two decimals, with a true minus; n/a where there is none."""
    return "n/a" if value is None else f"{value:{sign}.2f}".replace("-", "\u2212")


def span(low, high) -> str:
    return f"{number(low)} to {number(high)}"


def chip(kind: str, words: str, href: str) -> str:
    return f'<a class="chip {kind}" href="{html.escape(href)}">{html.escape(words)}</a>'


def small(words: str) -> str:
    return f'<span class="small">{html.escape(words)}</span>'


def link(row: dict) -> str:
    return f"#relation/{row['task']}/{row['model']}"


def cells(row: dict) -> list[tuple[str, str, float]]:
    """(quantity, HTML, value to sort by) of the four cells of a model and relation."""
    right, of = row["correct_prompts"], row["prompts"]
    share = right / of if of else 0
    meter = (
        '<svg class="meter" viewBox="0 0 100 4" aria-hidden="true"><rect width="100" height="4"/>'
    )
    meter += f'<rect class="part" width="{100 * share:.0f}" height="4"/></svg>'
    answered = f"<span><b>{right}</b> of {of}</span>{meter}"
    x, x_value = x_cell(row)
    best, lift = best_cell(row)
    own, own_value = own_cell(row)
    return [
        ("Right", answered, share),
        ("X", x, x_value),
        ("Best vector", best, lift),
        ("Own answer", own, own_value),
    ]


def x_cell(row: dict) -> tuple[str, float]:
    n, kind = row["correct_prompts"], row["x"]
    words = {"yes": "X", "no": "no X", "undecided": "undecided"}
    words |= {"few": f"few: n = {n}", "too few": f"too few: n = {n}"}
    made = chip(f"x {kind.replace(' ', '-')}", words[kind], link(row))
    if kind == "yes":
        made += f" at <b>{number(row['depth'])}</b>"
        low, high = row["depth_low"], row["depth_high"]
        # Resamples without a crossover leave an end open.
        made += small(f"{number(low) if low is not None else 'start'} to "
                      f"{number(high) if high is not None else 'end'}")  # fmt: skip
    elif kind == "undecided":
        made += small(f"argument {span(row['formed_low'], row['formed_high'])}")
    if kind != "too few" and row["argument_function"] is not None:
        made += small(f"argument first: {100 * row['argument_function']:.0f}\u00a0%")
    if row["paper_x"] is not None:
        at = f" at {number(row['paper_depth'])}" if row["paper_depth"] else ""
        made += paper(("X" if row["paper_x"] else "no X") + at)
    order = {"yes": 1, "undecided": -1, "few": -2, "too few": -3, "no": -4}[kind]
    return made, row["depth"] if kind == "yes" else order


def paper(words: str) -> str:
    return f'<span class="small paper">paper: {html.escape(words)}</span>'


def best_cell(row: dict) -> tuple[str, float]:
    kind = row["lift"]
    if kind in ("not injected", "no vector"):
        return small("not tested" if kind == "not injected" else "no prompt is a donor"), -9
    n = row["test_prompts"]
    if kind == "too few":
        made = chip("lift too-few", f"too few: n = {n}", link(row))
    else:
        words = {
            "yes": "lifts",
            "no": "no lift",
            "undecided": "no sure lift",
            "few": f"few: n = {n}",
        }
        made = chip(f"lift {kind}", words[kind], link(row)) + f" <b>{number(row['rise'], '+')}</b>"
        made += f' <span class="range">{span(row["rise_low"], row["rise_high"])}</span>' + dumbbell(
            row
        )
        control = "control wins: " if row["best"] in CONTROLS else ""
        made += small(f"{control}{label(row['best'])}")
        if row["best"] != "o-vector" and row["ovector_after"] is not None:
            told = "" if row["p_holm"] is not None and row["p_holm"] < 0.05 else ", not told apart"
            made += small(f"o-vector: {number(row['ovector_after'])}{told}")
    if row["paper_before"] and row["paper_after"]:
        made += paper(f"{number(row['paper_before'])} → {number(row['paper_after'])}")
    return made, -8 if kind == "too few" else row["rise"]


def dumbbell(row: dict) -> str:
    """Before and after with its interval, on 0 to 1; the numbers stand beside it as text."""
    before, after = row["reciprocal_rank_before"], row["reciprocal_rank_after"]
    low, high = row["reciprocal_rank_after_low"], row["reciprocal_rank_after_high"]
    ends = [4 + 112 * value for value in (before, after, low, high)]
    return (
        f'<span class="bar"><svg viewBox="0 0 120 12" aria-hidden="true">'
        f'<line class="axis" x1="4" x2="116" y1="6" y2="6"/>'
        f'<line class="band" x1="{ends[2]:.1f}" x2="{ends[3]:.1f}" y1="6" y2="6"/>'
        f'<line class="before" x1="{ends[0]:.1f}" x2="{ends[0]:.1f}" y1="1" y2="11"/>'
        f'<circle class="after" cx="{ends[1]:.1f}" cy="6" r="3.4"/></svg>'
        f" {number(before)} → {number(after)}</span>"
    )


def own_cell(row: dict) -> tuple[str, float]:
    if row["lift"] in ("not injected", "no vector"):
        return small("not tested"), -9
    kind = row["transfer"]
    if row["lift"] == "too few":
        return chip("own too-few", f"too few: n = {row['test_prompts']}", link(row)), -8
    words = {"argument": "above chance", "class": "not surely", "none": "no sure lift"}
    made = chip(
        f"own {kind.replace(' ', '-')}",
        words.get(kind, f"few: n = {row['test_prompts']}"),
        link(row),
    )
    made += f'<span class="nums">{number(row["among_before"])} → <b>{number(row["among_after"])}</b></span>'
    made += small(f"chance {number(row['among_chance'])}")
    return made, row["among_after"] or 0


def last(models: list[dict]) -> list[dict]:
    """The models without the revisions of a series before its last."""
    return [model for model in models if model["revisions"]]


def of_series(model: dict) -> str:
    return f", last of {model['revisions']} revisions" if model["revisions"] > 1 else ""


def table(data: dict) -> str:
    """The table relations x models as HTML; it is read without the page's scripts too."""
    by_cell = {(row["task"], row["model"]): row for row in data["findings"]}
    shown = last(data["models"])
    names = [model["model"] for model in shown]
    heads = ("Right", "X, at depth", "Best vector, lift", "Own answer")
    top = "".join(
        f'<th scope="colgroup" colspan="4" data-dt-order="disable">{html.escape(model["model"])}'
        f"<span>{size(model['parameters'])}, {model['layers']} layers{of_series(model)}</span></th>"
        for model in shown
    )
    below = "".join(
        f'<th scope="col" class="q{q}">{head}</th>' for _ in names for q, head in enumerate(heads)
    )
    body = []
    for task in data["tasks"]:
        line = (
            f'<th scope="row"><a href="#relation/{task["task"]}">{html.escape(task["title"])}</a>'
            f"{small(task['kind'])}</th>"
        )
        for model in names:
            for q, (quantity, made, value) in enumerate(cells(by_cell[task["task"], model])):
                line += (
                    f'<td class="q{q}" data-order="{value:.6f}" data-model="{html.escape(model)}"'
                    f' data-quantity="{quantity}"><div>{made}</div></td>'
                )
        body.append(f"<tr>{line}</tr>")
    return (
        f'<thead><tr><th rowspan="2" scope="col">Relation</th>{top}</tr><tr>{below}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody>"
    )


def headline(data: dict) -> str:
    """What was found, a line each model, counted from the rows of the table."""
    lines = []
    for model in last(data["models"]):
        found = [row for row in data["findings"] if row["model"] == model["model"]]
        x = Counter(row["x"] for row in found)
        few = x["few"] + x["too few"]
        parts = [
            f"{x['no']} without" * bool(x["no"]),
            f"{x['undecided']} undecided" * bool(x["undecided"]),
        ]
        parts.append(f"{few} with too few right answers to say" * bool(few))
        rest = ", ".join(part for part in parts if part)
        line = f"an X in <b>{x['yes']} of {len(found)}</b> relations" + f" ({rest})" * bool(rest)
        tried = [row for row in found if row["lift"] not in ("not injected", "no vector")]
        if tried:
            lifts = sum(row["lift"] == "yes" for row in tried)
            own = sum(row["transfer"] == "argument" for row in tried)
            beats = sum((row["p_holm"] or 1) < 0.05 and row["difference"] > 0 for row in tried)
            line += (
                f"; a vector lifts the answer in <b>{lifts} of {len(tried)}</b> relations tested, with"
                f" the own answer above chance in {own}; something else does surely better than the"
                f" o-vector in {beats}"
            )
        lines.append(f"<li><b>{html.escape(model['model'])}</b>: {line}.</li>")
    return f"<ul>{''.join(lines)}</ul>"


def provenance(connection, version: str) -> str:
    """What made the sweep, as HTML: code, packages, models."""
    runs = connection.execute(
        "SELECT DISTINCT vecsweep, git_commit, python, packages, host FROM runs ORDER BY ALL"
    ) if exists(connection, "runs") else None  # fmt: skip
    lines = []
    for code, commit, python, packages, host in runs.fetchall() if runs else []:
        listed = ", ".join(f"{k} {v}" for k, v in json.loads(packages or "{}").items())
        words = f"vecsweep {code}, commit {commit or 'unknown'}; Python {python}; {listed}; {host}"
        lines.append(f"<li>{html.escape(words)}</li>")
    for model in models(connection):
        words = f"{model['model']}: {model['family']}, {size(model['parameters'])} parameters, "
        words += f"{model['layers']} layers, {model['dtype']}, from {model['source']} {model['revision'] or ''}"
        lines.append(f"<li>{html.escape(words.strip())}</li>")
    return f"<ul>{''.join(lines)}</ul><p>This page was made by vecsweep {version}.</p>"


def exists(connection, name: str) -> bool:
    query = "SELECT count(*) FROM duckdb_tables() WHERE table_name = ?"
    return bool(connection.execute(query, [name]).fetchone()[0])
