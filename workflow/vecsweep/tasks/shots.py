"""Prompts with several demonstrations, all of train: what task and function vectors are made of."""

import random

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
    task: Task, reader: Reader, pool: list[dict], sets: int, shots: int, queries: int, seed
) -> list[list[dict]]:
    """`sets` lists of at most `queries` prompts that share at most `shots` demonstrations.

    A prompt is its row of the pool with its `token_ids`, and `shuffled_ids`: those with each
    demonstration's answer given to the next one. Nothing that is asked stands among the
    demonstrations, nor does its answer, but in many-to-one relations. There are fewer demonstrations
    where the context is too short. Prompts whose answer would have another first token are left
    out, and sets without any.
    """
    found = []
    for number in range(sets):
        order = random.Random(f"{seed} shots {task.name} {number}").sample(pool, len(pool))
        asked = order[: min(queries, len(order) // 2)]
        shown = [task.rows[row["prompt_id"]] for row in order[len(asked) :]]
        shown = [one for one in shown if all(_fits(task, one, row) for row in asked)][:shots]
        template = number % len(task.templates)
        while shown:
            prompts = [_prompt(task, reader.tokenizer, row, shown, template) for row in asked]
            some = [prompt for prompt in prompts if prompt]
            longest = max((len(prompt[key]) for prompt in some for key in IDS), default=0)
            if not reader.context or longest < reader.context:
                found += [some] if some else []
                break
            shown = shown[:-1]
    return found


def _fits(task, shown, row):
    asked = task.rows[row["prompt_id"]]
    if task.kind == "many-to-one":
        return shown["argument"] != asked["argument"]
    return not gives_away(shown, asked)


def _prompt(task, tokenizer, row, shown, template):
    asked = task.rows[row["prompt_id"]]
    moved = [
        one | {"answers": other["answers"]} for one, other in zip(shown, [*shown[1:], shown[0]])
    ]
    texts = [abstractive_prompt(task, asked, some, template) for some in (shown, moved)]
    ids = [_ids(tokenizer, text) for text in texts]
    tokens = continuation(ids[0], _ids(tokenizer, f"{texts[0]}{task.space}{asked['answers'][0]}"))
    if not tokens or tokens[0] not in row["answer_tokens"]:
        return None
    return row | dict(zip(IDS, ids))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).ids
