"""Every prompt by layer, packed for the page: top tokens, ranks of argument and answer, stages."""

import json
from collections.abc import Iterator

from vecsweep.page.packing import pack

# A state is a prompt at a layer and site. Packed, one takes about 20 letters of the page: all of
# them together stay below 8 MB.
MOST = 400_000
SITES = ("resid_mid", "attention_alone", "ffn_alone", "resid_post")
ABOUT = (
    "prompt_set, prompt_id, split, text, argument, answer, pattern, argument_first, argument_last,"
    " function_layer, function_site, flip_layer, argument_token, answer_tokens"
)


def packed(connection, packs: list[str], most: int = MOST) -> tuple[list[dict], str]:
    """A row each model and task, with the number of its pack; and a line on what is left out.

    A sweep of more than `most` states keeps the first prompts of every model and task; where one
    prompt each is too much, the first models and tasks.
    """
    cells = connection.execute(
        """SELECT s.model, s.task, count(DISTINCT prompt_id), any_value(layers),
                  any_value(if(parallel_blocks, 3, 2)) * count(DISTINCT prompt_set)
           FROM stages AS s JOIN models USING (model) JOIN tasks AS t ON t.task = s.task
           GROUP BY s.model, s.task, parameters, place ORDER BY parameters, s.model, place"""
    ).fetchall()
    one_each = sum(layers * sites for *_, layers, sites in cells)
    every = sum(prompts * layers * sites for _, _, prompts, layers, sites in cells)
    keep = max(1, most // one_each) if every > most else max((c[2] for c in cells), default=0)
    found, used, held, total = [], 0, 0, 0
    for model, task, prompts, layers, sites in cells:
        total += prompts
        used += min(keep, prompts) * layers * sites
        if used > most:
            continue
        held += min(keep, prompts)
        content = cell(connection, model, task, keep)
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        found.append({"model": model, "task": task, "pack": pack(text, packs)})
    if held == total:
        return found, ""
    return found, (
        f"To keep this page small it holds {held:,} of the sweep's {total:,} prompts, the first ones"
        " of each model and relation; all are in the tables lens and top_tokens of summary.duckdb."
    )


def cell(connection, model: str, task: str, keep: int) -> dict:
    """The first `keep` prompts of a cell. Arrays run over prompts, layers, sites (and tokens)."""
    where = "(model, task) = (?, ?)"
    ids = f"SELECT DISTINCT prompt_id FROM stages WHERE {where} ORDER BY 1 LIMIT {keep}"
    chosen = f"WHERE {where} AND prompt_id IN ({ids})"
    values = [model, task] * 2
    rows = connection.execute(
        f"""SELECT {ABOUT} FROM stages
            JOIN (SELECT model, task, prompt_set, prompt_id, split, text, argument, answer,
                         argument_token, answer_tokens FROM prompts)
                USING (model, task, prompt_set, prompt_id)
            {chosen} ORDER BY prompt_set, prompt_id""",
        values,
    ).fetchall()
    numbers: dict = {}  # token id -> its number here

    def number(token):
        return numbers.setdefault(token, len(numbers))

    described = [
        [*about, number(argument), [number(token) for token in answers or []]]
        for *about, argument, answers in rows
    ]
    order = f"ORDER BY prompt_set, prompt_id, layer, list_position({list(SITES)}, site)"
    sites, top, percent = [], [], []
    for site, tokens, probabilities in states(connection.execute(
        f"""SELECT site, list(token_id ORDER BY position), list(probability ORDER BY position)
            FROM top_tokens {chosen}
            GROUP BY prompt_set, prompt_id, layer, site {order}""",
        values,
    )):  # fmt: skip
        if site not in sites:
            sites.append(site)
        top.append([number(token) for token in tokens])
        percent.append([round(100 * p) for p in probabilities])
    ranks = connection.execute(
        f"""SELECT max(rank) FILTER (target = 'argument'), max(rank) FILTER (target = 'answer')
            FROM lens {chosen} GROUP BY prompt_set, prompt_id, layer, site {order}""",
        values,
    ).fetchall()
    words = dict(connection.execute(
        "SELECT token_id, token FROM vocabularies WHERE model = ? AND token_id IN"
        " (SELECT unnest(?::INTEGER[]))",
        [model, [token for token in numbers if token is not None]],
    ).fetchall())  # fmt: skip
    return {
        "sites": sites,
        "words": [words.get(token) or f"⟨{token}⟩" for token in numbers],
        "prompts": described,
        "top": top,
        "percent": percent,
        "argument": [argument for argument, _ in ranks],
        "answer": [answer for _, answer in ranks],
    }


def states(result) -> Iterator[tuple]:
    while rows := result.fetchmany(10_000):
        yield from rows
