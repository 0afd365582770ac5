"""Stage `prompts`: a task's rows as the token ids that one model reads (paper section 3)."""

import random

import transformers

from vecsweep import Problem, tables, tasks
from vecsweep.engine.load import weights_folder
from vecsweep.files import read_json
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import PROMPT_SETS

# A shared first token of argument and answer leaves nothing to tell apart (paper section 3).
SAME_FIRST_TOKEN = "argument and answer start with the same token"
# What a dropped prompt has not got.
TOKEN_COLUMNS = (
    *("argument_token", "answer_tokens", "argument_length", "answer_length"),
    *("first_token_letters", "stratum"),
)


def run(args):
    """Write table `prompts`: a row for each prompt of the three sets, dropped ones included."""
    description = read_json(args.model)
    folder = weights_folder(description, args.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    task = tasks.load(args.task, args.settings["task"])
    rows = build(task, tokenizer, args.settings, description["context"])
    for row in rows:
        row |= {"model": description["model"], "title": task.title, "kind": task.kind}
    tables.write("prompts", rows, args.output, {"step_version": STAGES["prompts"].version})
    kept = sum(row["dropped"] is None for row in rows)
    print(f"{description['model']}, {task.name}: {kept} prompts of {len(rows)} kept")


def build(task: tasks.Task, tokenizer, settings: dict, context: int | None = None) -> list[dict]:
    """The rows of table `prompts` for a task: abstractive, extractive and novel prompts.

    `prompt_id` is the row number in the task's data, the same in all three sets and all models.
    `settings`: demonstrations, seed, max_prompts (None for all). The two sets that share a pair
    are dropped or kept together, but a copying twin has no first token to share.
    """
    seed = settings["seed"]
    words = tasks.random_words()
    group = task.out_of_domain.get("group")
    split = split_arguments([row["argument"] for row in task.rows], seed, task.name)
    rows = []
    for number, row in enumerate(task.rows):
        shown = tasks.choose_demonstrations(task, row, settings["demonstrations"], seed)
        question = tasks.abstractive_prompt(task, row, [])
        texts = {
            "abstractive": tasks.abstractive_prompt(task, row, shown),
            "extractive": tasks.extractive_prompt(task, row, shown),
            # Seeded by the row itself, so that a row added elsewhere changes no prompt.
            "novel": tasks.novel_prompt(row, words, random.Random(f"{seed} {question}")),
        }
        for prompt_set, text in texts.items():
            twin = prompt_set == "extractive"
            answers = tasks.extractive_answers(task, row) if twin else row["answers"]
            rows.append(
                {
                    "task": task.name,
                    "prompt_set": prompt_set,
                    "prompt_id": number,
                    "group": row.get("group") or None,
                    "argument": row["argument"],
                    "answer": "|".join(answers),
                    "demonstrations": "|".join(r["argument"] for r in shown),
                    "text": text,
                    "split": split[row["argument"]],
                    "out_of_domain": group is not None and row.get("group") == group,
                }
                | _tokens(tokenizer, text, row["argument"], answers, twin, context)
            )
    # A set's prompts stand together, since they share their beginning.
    rows.sort(key=lambda row: PROMPT_SETS.index(row["prompt_set"]))
    _drop_pairs(rows, settings["max_prompts"], seed)
    if all(row["dropped"] for row in rows):
        raise Problem(
            f"task '{task.name}': no prompt is left: every row was dropped, the first "
            f"because {rows[0]['dropped']}; choose other words or another template"
        )
    return rows


def split_arguments(arguments: list[str], seed: int, name: str) -> dict[str, str]:
    """argument -> dev (for choosing settings) or test (for reporting), a seeded half each."""
    distinct = list(dict.fromkeys(arguments))
    dev = set(random.Random(f"{seed} {name} split").sample(distinct, len(distinct) // 2))
    return {argument: "dev" if argument in dev else "test" for argument in distinct}


def continuation(tokenizer, text: str, ids: list[int], word: str) -> list[int] | None:
    """The tokens that ` word` adds to a prompt, None if it changes the prompt's own tokens.

    A word is never encoded alone: its tokens depend on what stands before it.
    """
    longer = tokenizer(f"{text} {word}").input_ids
    return longer[len(ids) :] if longer[: len(ids)] == ids else None


def _tokens(tokenizer, text, argument, answers, twin, context):
    ids = tokenizer(text).input_ids
    result = dict.fromkeys(TOKEN_COLUMNS) | {"token_ids": ids, "dropped": None}
    tokens = [continuation(tokenizer, text, ids, word) for word in [argument, *answers]]
    words = [some for some in tokens if some]
    if len(words) < len(tokens):
        return result | {"dropped": "a word changes the tokens of its prompt"}
    argument_ids, *answer_ids = words
    first = list(dict.fromkeys(tokens[0] for tokens in answer_ids))
    if not (twin and argument in answers):  # a copying twin answers with its argument
        first = [token for token in first if token != argument_ids[0]]
    if not first:
        return result | {"dropped": SAME_FIRST_TOKEN}
    sizes = ["one" if len(w) == 1 else "several" for w in (argument_ids, answer_ids[0])]
    result |= {
        "argument_token": argument_ids[0],
        "answer_tokens": first,
        "argument_length": len(argument_ids),
        "answer_length": len(answer_ids[0]),
        "first_token_letters": len(tokenizer.decode(first[:1]).strip()),
        "stratum": f"argument {sizes[0]}, answer {sizes[1]}",
    }
    if context and len(ids) >= context:
        result["dropped"] = f"longer than the model's context of {context} tokens"
    return result


def _drop_pairs(rows, max_prompts, seed):
    """What is dropped from one prompt set is dropped from all; then the seeded cap.

    A quarter of the places is kept for the out-of-domain group, if there is one.
    """
    reasons: dict[int, str] = {}
    for row in rows:
        if row["dropped"]:
            reasons.setdefault(row["prompt_id"], row["dropped"])
    left = {
        row["prompt_id"]: row["out_of_domain"] for row in rows if row["prompt_id"] not in reasons
    }
    if max_prompts and len(left) > max_prompts:
        order = random.Random(f"{seed} cap").sample(sorted(left), len(left))
        outside = [number for number in order if left[number]][: max_prompts // 4]
        inside = [number for number in order if not left[number]][: max_prompts - len(outside)]
        capped = set(left) - set(inside + outside)
        reasons |= dict.fromkeys(capped, f"over max_prompts: {max_prompts}")
    for row in rows:
        row["dropped"] = reasons.get(row["prompt_id"])
