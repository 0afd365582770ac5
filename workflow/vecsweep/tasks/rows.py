"""Rows of table `prompts`, as the stages after it read them."""

from __future__ import annotations

import hashlib
import json
import os
import random
from typing import TYPE_CHECKING

from vecsweep import Problem
from vecsweep.files import Tensors, read_table

if TYPE_CHECKING:
    import torch

PROMPT_SETS = ("abstractive", "extractive", "novel")
CAPTURED = ("abstractive", "extractive")  # novel prompts are only run with interventions
NOVEL = ("novel",)


def kept_rows(path, prompt_sets) -> list[dict]:
    """The prompts of some sets that were not dropped, in table order: the rows of `states`."""
    rows = read_table(path).to_pylist()
    return [r for r in rows if r["dropped"] is None and r["prompt_set"] in prompt_sets]


def prompt_groups(rows: list[dict]) -> list[list[list[int]]]:
    """Token ids of consecutive prompts of one set, template and demonstrations: a shared beginning."""
    groups: dict[tuple, list] = {}
    order = []
    for row in rows:
        key = (row["prompt_set"], row["template"], row["demonstrations"])
        if not order or order[-1] != key:
            order.append(key)
            groups[(len(order), *key)] = []
        groups[(len(order), *key)].append(row["token_ids"])
    return list(groups.values())


def token_hash(rows: list[dict]) -> str:
    """sha256 of the prompts' token ids, in order."""
    return hashlib.sha256(json.dumps([r["token_ids"] for r in rows]).encode()).hexdigest()


def states_of(path, rows: list[dict]) -> Tensors:
    """The states of these prompts, in this order; Problem if the file has other ones."""
    states = Tensors(path)
    if states.metadata["token_ids_sha256"] != token_hash(rows):
        raise Problem(f"{path} belongs to other prompts; delete it and run again")
    return states


def in_domain(rows: list[dict], split: str) -> list[dict]:
    """The in-domain prompts of a split."""
    return [row for row in rows if row["split"] == split and not row["out_of_domain"]]


def unseen(rows: list[dict], own: list[dict], used: set[int]) -> list[dict]:
    """Prompts without an argument or an answer of the prompts `used` of a task's rows `own`.

    Nor of their demonstrations, dropped ones included. What vectors are made of is in none of the
    prompts that they are judged by. Answers are compared by their first tokens: that is what a
    vector can promote.
    """
    made_of = [row for row in own if row["prompt_id"] in used]
    arguments = {row["argument"] for row in made_of}
    arguments |= {argument for row in made_of for argument in row["demonstrations"].split("|")}
    shown = (row[name] for row in made_of for name in ("answer_tokens", "shown_tokens"))
    answers = {token for tokens in shown for token in tokens}
    return [
        row
        for row in rows
        if row["argument"] not in arguments and answers.isdisjoint(row["answer_tokens"])
    ]


def dev_prompts(own: list[dict], used: set[int], settings: dict) -> list[dict]:
    """The novel prompts that settings are chosen on; `used`: prompts that vectors are made of."""
    dev = in_domain(unseen(own, own, used), "dev")
    return capped(dev, settings["dev_prompts"], settings["seed"])


def test_prompts(own: list[dict], used: set[int], elsewhere, settings: dict) -> list[tuple]:
    """(domain, prompts, all answers of their task): `in`, and `out`: another group or task.

    `elsewhere` are the prompts files of tasks that are out-of-domain for this one.
    """
    fair = unseen(own, own, used)
    found = [
        ("in", in_domain(fair, "test"), own),
        ("out", [row for row in fair if row["out_of_domain"]], own),
    ]
    for path in elsewhere:
        others = kept_rows(path, NOVEL)
        found.append(("out", unseen(others, own, used), others))
    return [
        (domain, capped(rows, settings["test_prompts"], settings["seed"]), all_answers(task))
        for domain, rows, task in found
        if rows
    ]


def all_answers(rows: list[dict]) -> torch.Tensor:
    """The first tokens of all answers of a task's prompts, [T]."""
    import torch  # stage prompts does without

    return torch.tensor(sorted({token for row in rows for token in row["answer_tokens"]}))


def capped(rows: list, count: int | None, seed: int) -> list:
    """A seeded sample of at most `count` rows in their order; all of them without a count."""
    if count is None or len(rows) <= count:
        return rows
    chosen = set(random.Random(f"{seed} interventions").sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i in chosen]


def answered(prompts: list[dict], stages: list[dict]) -> list[dict]:
    """The abstractive prompts that are in-domain, answered correctly and of one template.

    The template with most such prompts. Each has its stage's `function_layer` and `function_site`,
    from the rows of table `stages`.
    """
    found = {
        stage["prompt_id"]: stage
        for stage in stages
        if stage["prompt_set"] == "abstractive" and stage["pattern"] != "incorrect"
    }
    templates: dict[int, list[dict]] = {}
    for prompt in prompts:
        stage = found.get(prompt["prompt_id"])
        if stage and not prompt["out_of_domain"]:
            named = {key: stage[key] for key in ("function_layer", "function_site")}
            templates.setdefault(prompt["template"], []).append(prompt | named)
    return max(templates.values(), key=len, default=[])


def _argument_end(row: dict, common: int) -> int:
    """Where the last mention of a prompt's argument ends, in letters of its text.

    It may stand in the template's own words too, as man in many: so the first mention whose rest is
    among the `common` last letters of all prompts.
    """
    text, argument = row["text"], row["argument"]
    starts = [i for i in range(len(text)) if text.startswith(argument, i)]
    if not starts:
        raise Problem(
            f"task '{row['task']}': the prompt \"{text}\" does not hold its argument '{argument}', at "
            "whose last token this stage looks; write {argument} in every template, or leave the "
            "task out of patching > tasks and relational > tasks"
        )
    ends = [start + len(argument) for start in starts]
    return next((end for end in ends if len(text) - end <= common), ends[-1])


def argument_ends(path, rows: list[dict]) -> list[int]:
    """Where each prompt's argument ends, in tokens from the prompt's end: 1 is the last token.

    Its last mention is meant. `path` is the tokenizer.json that made the prompts; Problem if it
    did not.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of no class of its own
        raise Problem(f"{path} is damaged ({error}); delete it and run again") from error
    ends, texts = [], [row["text"] for row in rows]
    # What stands behind the argument is the template's, the same in all of several prompts.
    backwards = [text[::-1] for text in texts] if len({row["argument"] for row in rows}) > 1 else []
    common = len(os.path.commonprefix(backwards))
    # Of a conversation the template writes the special tokens.
    ways = [tokenizer.encode_batch(texts, add_special_tokens=special) for special in (True, False)]
    for row, encoded in zip(rows, zip(*ways)):
        found = next((one for one in encoded if one.ids == row["token_ids"]), None)
        if found is None:
            raise Problem(f"{path} is not what made the prompts; delete it and run again")
        end = _argument_end(row, common)
        begin = end - len(row["argument"])
        # No token may cover the last letter: normalised, it is one with the letter before, or gone.
        inside = [
            i for i, (start, stop) in enumerate(found.offsets) if max(start, begin) < min(stop, end)
        ]
        if not inside:
            raise Problem(
                f"task '{row['task']}': the tokenizer leaves nothing of the argument "
                f"'{row['argument']}'; remove its row, or leave the task out of patching > tasks and "
                "relational > tasks"
            )
        ends.append(len(found.ids) - inside[-1])
    return ends
