"""Stage `prompts`: a task's rows as the token ids that one model reads (paper section 3)."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from vecsweep import Problem, tables, tasks
from vecsweep.engine.sources import weights_folder
from vecsweep.files import once, read_json
from vecsweep.layout import STAGES
from vecsweep.tasks.chat import Chat, novel_turns, question_turns
from vecsweep.tasks.readers import Reader, continuation
from vecsweep.tasks.rows import PROMPT_SETS
from vecsweep.tasks.splits import is_outside, split_rows

# A shared first token of argument and answer leaves nothing to tell apart (paper section 3).
SAME_FIRST_TOKEN = "argument and answer start with the same token"
# What a dropped prompt has not got.
TOKEN_COLUMNS = (
    *("argument_token", "answer_tokens", "argument_length", "answer_length"),
    *("first_token_letters", "stratum"),
)


class Said(NamedTuple):
    """A prompt before it is tokens; `twin`: of the extractive set, `space`: before its answer."""

    text: str
    argument: str
    answers: list[str]
    twin: bool
    space: str

    @property
    def continued(self) -> list[str]:
        """The text with the argument behind it, and with each answer."""
        return [f"{self.text}{self.space}{word}" for word in (self.argument, *self.answers)]


def run(args):
    """Write table `prompts`: a row for each prompt of the three sets, dropped ones included."""
    model, tokenizer, context, embeddings = once(args, Reader.of, args.model, args.tokenizer)
    others = [once(args, Reader.of, *paths) for paths in zip(args.others, args.tokenizers)]
    # A section of a published file is named in the config, not in the file's path.
    task = tasks.load(args.settings.get("file") or args.task, args.settings["task"])
    chat = once(args, chat_of, args.model) if args.settings.get("chat") else None
    rows = build(task, tokenizer, args.settings, context, others, chat)
    for row in rows:
        if row["dropped"] is None and embeddings is not None:
            last = max(*row["token_ids"], *row["answer_tokens"], row["argument_token"])
            if last >= embeddings:
                raise Problem(
                    f"task '{task.name}': the prompt of '{row['argument']}' has a token that {model} has "
                    f"no embedding for: {text_of(tokenizer, last)!r}; choose other words"
                )
        row |= {"model": model, "title": task.title, "kind": task.kind}
    tables.write("prompts", rows, args.output, {"step_version": STAGES["prompts"].version})
    kept = sum(row["dropped"] is None for row in rows)
    print(f"{model}, {task.name}: {kept} prompts of {len(rows)} kept")
    if (token := only_token(rows)) is not None:
        print(
            f"{task.name}: all answers start with the token {text_of(tokenizer, token)!r}, so their "
            "ranks tell no answer from another (column chance of table patterns is 1)"
        )


def chat_of(path) -> Chat:
    """The chat template of the model that a `model.json` describes."""
    description = read_json(path)
    return Chat(description["model"], weights_folder(description, path))


def build(
    task: tasks.Task,
    tokenizer: Tokenizer,
    settings: dict,
    context: int | None = None,
    others: Sequence[Reader] = (),
    chat: Chat | None = None,
) -> list[dict]:
    """The rows of table `prompts` for a task: abstractive, extractive and novel prompts.

    `prompt_id` is the row number in the task's data, the same in all three sets and all models.
    `settings`: demonstrations, seed, max_prompts (None for all). The sets that share a pair are
    dropped or kept together, but a copying twin has no first token to share. A pair that one of the
    `others` would drop is dropped too. With a `chat` all are conversations.
    """
    seed = settings["seed"]
    words = tasks.random_words()
    pool = tasks.demonstration_pool(task, seed)
    rows, prompts = [], []
    for number, (row, split) in enumerate(zip(task.rows, split_rows(task, seed))):
        shown = tasks.choose_demonstrations(pool, row, settings["demonstrations"])
        template = tasks.template_of(task, row, seed)
        # Seeded by the row itself, so that a row added elsewhere changes no prompt.
        generator = random.Random(tasks.seeded(task, row, "novel", seed))
        if chat:
            texts = _spoken(chat, task, row, shown, template, novel_turns(row, words, generator))
        else:
            texts = {"abstractive": tasks.abstractive_prompt(task, row, shown, template)}
            if task.extractive:
                texts["extractive"] = tasks.extractive_prompt(task, row, shown, template)
            texts["novel"] = tasks.novel_prompt(row, words, generator, task.space)
        for prompt_set, text in texts.items():
            twin = prompt_set == "extractive"
            answers = tasks.extractive_answers(task, row) if twin else row["answers"]
            space = chat.between if chat else task.space
            prompts.append(Said(text, row["argument"], answers, twin, space))
            rows.append(
                {
                    "task": task.name,
                    "prompt_set": prompt_set,
                    "prompt_id": number,
                    "template": template,
                    "group": row.get("group") or None,
                    "argument": row["argument"],
                    "answer": "|".join(answers),
                    "demonstrations": "|".join(r["argument"] for r in shown),
                    "text": text,
                    "answer_in_prompt": tasks.stands_in(answers, text),
                    "split": split,
                    "out_of_domain": is_outside(task, row),
                }
            )
    # A chat template writes the special tokens itself.
    first: dict[str, set[int]] = {}  # of the answers of an argument, also where it is dropped
    for row, tokens in zip(rows, _tokens(tokenizer, prompts, context, special=not chat)):
        first.setdefault(row["argument"], set()).update(tokens.pop("first"))
        row |= tokens
    for row in rows:
        shown = row["demonstrations"].split("|")
        row["shown_tokens"] = sorted(set().union(*(first.get(name, ()) for name in shown)))
    for other in others:
        for row, tokens in zip(rows, _tokens(other.tokenizer, prompts, other.context)):
            if tokens["dropped"] and not row["dropped"]:
                row["dropped"] = f"{other.model}: {tokens['dropped']}"
    # Prompts of a set and template stand together, since they share their beginning.
    rows.sort(key=lambda row: (PROMPT_SETS.index(row["prompt_set"]), row["template"]))
    _drop_pairs(rows)
    _cap(rows, [tasks.seeded(task, row, "cap", seed) for row in task.rows], settings["max_prompts"])
    if all(row["dropped"] for row in rows):
        raise Problem(
            f"task '{task.name}': no prompt is left: every row was dropped, the first "
            f"because {rows[0]['dropped']}; choose other words or another template"
        )
    return rows


def only_token(rows: list[dict]) -> int | None:
    """The first token of all answers, if different answers share it, as numbers often do."""
    kept = [row for row in rows if row["dropped"] is None and row["prompt_set"] == "abstractive"]
    tokens = {token for row in kept for token in row["answer_tokens"]}
    answers = {row["answer"] for row in kept}
    return tokens.pop() if len(tokens) == 1 and len(answers) > 1 else None


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; special tokens have one too."""
    return tokenizer.decode([token], skip_special_tokens=False)


def _spoken(chat, task, row, shown, template, novel):
    """The texts of a row's prompts as conversations, by prompt set."""
    turns = {"abstractive": question_turns(task, row, shown, template, extractive=False)}
    if task.extractive:
        turns["extractive"] = question_turns(task, row, shown, template, extractive=True)
    return {name: chat.text(some) for name, some in (turns | {"novel": novel}).items()}


def _tokens(tokenizer, prompts, context, special=True):
    """The token columns of each prompt; all texts are encoded in one call, on all cores."""
    texts = list(dict.fromkeys(text for said in prompts for text in (said.text, *said.continued)))
    found = tokenizer.encode_batch(texts, add_special_tokens=special)
    ids = {text: some.ids for text, some in zip(texts, found)}
    return [_columns(tokenizer, said, ids, context) for said in prompts]


def _columns(tokenizer, said, encoded, context):
    ids = encoded[said.text]
    result = dict.fromkeys(TOKEN_COLUMNS) | {"token_ids": ids, "dropped": None}
    tokens = [continuation(ids, encoded[text]) for text in said.continued]
    result["first"] = [some[0] for some in tokens[1:] if some] if not said.twin else []
    words = [some for some in tokens if some]
    if len(words) < len(tokens):
        return result | {"dropped": "a word changes the tokens of its prompt"}
    argument_ids, *answer_ids = words
    first = list(dict.fromkeys(tokens[0] for tokens in answer_ids))
    if not (
        said.twin and said.argument in said.answers
    ):  # a copying twin answers with its argument
        first = [token for token in first if token != argument_ids[0]]
    if not first:
        return result | {"dropped": SAME_FIRST_TOKEN}
    sizes = ["one" if len(w) == 1 else "several" for w in (argument_ids, answer_ids[0])]
    result |= {
        "argument_token": argument_ids[0],
        "answer_tokens": first,
        "argument_length": len(argument_ids),
        "answer_length": len(answer_ids[0]),
        "first_token_letters": len(text_of(tokenizer, first[0]).strip()),
        "stratum": f"argument {sizes[0]}, answer {sizes[1]}",
    }
    if context and len(ids) >= context:
        result["dropped"] = f"longer than the model's context of {context} tokens"
    return result


def _drop_pairs(rows):
    """What is dropped from one prompt set is dropped from all."""
    reasons: dict[int, str] = {}
    for row in rows:
        if row["dropped"]:
            reasons.setdefault(row["prompt_id"], row["dropped"])
    for row in rows:
        row["dropped"] = reasons.get(row["prompt_id"])


def _cap(rows, places, most):
    """Drop pairs over the cap: those that come last in the seeded order `places`.

    The order is each row's own and no model's: two models that drop few pairs for their tokens keep
    nearly the same ones. A quarter of the places is kept for the out-of-domain group, if there is one.
    """
    left = {row["prompt_id"]: row["out_of_domain"] for row in rows if row["dropped"] is None}
    if not most or len(left) <= most:
        return
    order = sorted(left, key=lambda number: places[number])
    outside = [number for number in order if left[number]][: most // 4]
    inside = [number for number in order if not left[number]][: most - len(outside)]
    over = set(left) - {*inside, *outside}
    for row in rows:
        if row["prompt_id"] in over:
            row["dropped"] = f"over max_prompts: {most}"
