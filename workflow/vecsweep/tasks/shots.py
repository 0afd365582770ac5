"""Prompts with several demonstrations, all of train: what task and function vectors are made of."""

import random
from collections import Counter

from tokenizers import Tokenizer

from vecsweep.tasks import Task, abstractive_prompt, gives_away
from vecsweep.tasks.readers import Reader, continuation
from vecsweep.tasks.rows import in_domain, kept_rows

IDS = ("token_ids", "shuffled_ids")


def train_pool(prompts, elsewhere) -> list[dict]:
    """The in-domain abstractive train prompts that give nothing of dev and test away.

    None has an answer's first token, or an argument, in common with a prompt of dev or test, or of
    the prompts files `elsewhere`, which report too.
    """
    rows = kept_rows(prompts, ("abstractive", "novel"))
    judged = [row for row in rows if row["split"] != "train" or row["out_of_domain"]]
    judged += [row for path in elsewhere for row in kept_rows(path, ("novel",))]
    arguments = {row["argument"] for row in judged}
    tokens = {token for row in judged for token in row["answer_tokens"]}
    return [
        row
        for row in in_domain(rows, "train")
        if row["prompt_set"] == "abstractive"
        and row["argument"] not in arguments
        and tokens.isdisjoint(row["answer_tokens"])
    ]


def draw(
    task: Task,
    reader: Reader,
    pool: list[dict],
    sets: int,
    shots: int,
    queries: int,
    seed,
    mixed: bool = False,
) -> list[list[dict]]:
    """`sets` lists of at most `queries` prompts that share at most `shots` demonstrations.

    A prompt is its row of the pool with its `token_ids`, and `shuffled_ids`: those with the answers
    of the demonstrations given to others, so that each has a wrong one; None where that cannot be,
    as with one demonstration, or where most have the same answer. With `mixed` none stands in more
    than half of them, if they are fewer for it. Nothing that is asked stands among the
    demonstrations, nor does its answer, but in many-to-one relations. There are fewer demonstrations
    where the context is too short. Prompts whose answer would have another first token are left
    out, and sets without any.
    """
    found = []
    for number in range(sets):
        order = random.Random(f"{seed} shots {task.name} {number}").sample(pool, len(pool))
        asked = order[: min(queries, len(order) // 2)]
        shown = [task.rows[row["prompt_id"]] for row in order[len(asked) :]]
        shown = [one for one in shown if all(_fits(task, one, row) for row in asked)]
        shown = in_halves(shown, shots) if mixed else shown[:shots]
        template = number % len(task.templates)
        while shown:
            prompts = [_prompt(task, reader.tokenizer, row, shown, template) for row in asked]
            some = [prompt for prompt in prompts if prompt]
            longest = max((len(prompt[key] or ()) for prompt in some for key in IDS), default=0)
            if not reader.context or longest < reader.context:
                found += [some] if some else []
                break
            shown = in_halves(shown, len(shown) - 1) if mixed else shown[:-1]
    return found


def in_halves(shown: list[dict], most: int) -> list[dict]:
    """The first `most` demonstrations, or fewer, of which no answer stands in more than half."""
    chosen: list[dict] = []
    counts: Counter[tuple] = Counter()
    for one in shown:
        answer = tuple(one["answers"])
        if len(chosen) < most and counts[answer] < most // 2:
            chosen.append(one)
            counts[answer] += 1
    while chosen and 2 * max(counts.values()) > len(chosen):
        answer = max(counts, key=counts.__getitem__)
        last = max(i for i, one in enumerate(chosen) if tuple(one["answers"]) == answer)
        del chosen[last]
        counts[answer] -= 1
    return chosen


def _fits(task, shown, row):
    asked = task.rows[row["prompt_id"]]
    if task.kind == "many-to-one":
        return shown["argument"] != asked["argument"]
    return not gives_away(shown, asked)


def _prompt(task, tokenizer, row, shown, template):
    asked = task.rows[row["prompt_id"]]
    text = abstractive_prompt(task, asked, shown, template)
    ids = _ids(tokenizer, text)
    tokens = continuation(ids, _ids(tokenizer, f"{text}{task.space}{asked['answers'][0]}"))
    if not tokens or tokens[0] not in row["answer_tokens"]:
        return None
    wrong = wrongly(shown)
    shuffled = wrong and _ids(tokenizer, abstractive_prompt(task, asked, wrong, template))
    return row | dict(zip(IDS, (ids, shuffled)))


def wrongly(shown: list[dict]) -> list[dict] | None:
    """The same demonstrations, each with the answers of another that has none in common with it.

    Those of the next one where that will do, else of one farther off; None where no step will.
    """
    # In the order of their answers, a step as long as the longest run of equal ones parts them all.
    by_answer = sorted(range(len(shown)), key=lambda i: shown[i]["answers"])
    for order in ([*range(len(shown))], by_answer):
        for step in range(1, len(shown)):
            given = {i: order[(k + step) % len(shown)] for k, i in enumerate(order)}
            if all(
                set(shown[i]["answers"]).isdisjoint(shown[other]["answers"])
                for i, other in given.items()
            ):
                answers = [shown[given[i]]["answers"] for i in range(len(shown))]
                return [one | {"answers": some} for one, some in zip(shown, answers)]
    return None


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).ids
