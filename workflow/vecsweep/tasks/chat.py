"""Prompts as a conversation, by a model's own chat template (`chat: true` under a model).

Each demonstration is a turn: the user asks, the assistant answers; the last answer is what the
assistant says first. What is asked is the task's template up to its answer, word for word. The facts
of an extractive prompt stand before the first question. In a novel context the user says the three
random words, the assistant the argument, twice, and the user says them again.
"""

import mmap
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vecsweep import Problem, tasks
from vecsweep.files import file_crc32

Turns = list[tuple[str, str]]  # (asked, answered); the last one is not answered yet: ""
GGUF_KEY = b"tokenizer.chat_template"
LONGEST = 1 << 21  # bytes of a template in a GGUF file, at most
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
PROBE = [("Say yes.", "")]
NONE = "has no chat template; write chat: false, or put its chat_template.jinja there"


class Chat:
    """A model's chat template, rendered in transformers' sandbox; Problem if it has none or fails.

    `folder` holds its tokenizer files. `between` is what the template writes between the start of
    the assistant's turn and its first word: a space, or mostly nothing.
    """

    def __init__(self, model: str, folder):
        from transformers import AutoTokenizer

        from vecsweep.engine.sources import PLAIN

        self.model, self.folder = model, folder
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **PLAIN)
        except Exception as error:  # transformers and tokenizers each raise their own
            raise Problem(f"model '{model}': no tokenizer in {folder}: {said(error)}") from error
        if not self.tokenizer.chat_template:
            raise Problem(f"model '{model}': {folder} {NONE}")
        asked, whole = self.text(PROBE), self.text([(PROBE[0][0], "yes")], ask=False)
        rest = whole[len(asked) :].partition("yes")[0] if whole.startswith(asked) else ""
        # What is no space there, as an empty thought, is for the model to say.
        self.between = rest if not rest.strip() else ""

    def text(self, turns: Turns, ask: bool = True) -> str:
        """The conversation as the model reads it; `ask`: up to where the assistant is to speak."""
        try:
            return self.tokenizer.apply_chat_template(
                messages(turns), tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # jinja and the template raise their own
            raise Problem(
                f"model '{self.model}': the chat template in {self.folder} fails: {said(error)}; "
                "mend it, or write chat: false"
            ) from error


def messages(turns: Turns) -> list[dict]:
    """Turns as `apply_chat_template` takes them."""
    found = []
    for asked, answered in turns:
        found.append({"role": "user", "content": asked})
        if answered:
            found.append({"role": "assistant", "content": answered})
    return found


def question_turns(
    task, row: dict, shown: Sequence[dict], template: int, extractive: bool
) -> Turns:
    """The turns of an abstractive or extractive prompt (paper section 3), demonstrations first."""
    text, turns, facts = task.templates[template], [], ""
    for demonstration in shown:
        answers = demonstration["answers"]
        if extractive and "answer" in task.extractive:
            answers = tasks.extractive_answers(task, demonstration)
        asked = tasks._question(text, demonstration)
        # With what the template has behind the answer, as a full stop.
        whole = tasks._fill(text, demonstration, answers[0])
        turns.append((asked, whole[len(asked + task.space) :]))
    turns.append((tasks._question(text, row), ""))
    if extractive and "prefix" in task.extractive:
        pattern = task.extractive["prefix"]
        facts = "".join(tasks._fill(pattern, r, r["answers"][0]) for r in (*shown, row))
    return [(facts + turns[0][0], turns[0][1]), *turns[1:]]


def novel_turns(row: dict, words: list[str], generator: random.Random) -> Turns:
    """The turns of a novel context: three random words, and the argument after them."""
    context = " ".join(generator.sample(words, 3))
    return [(context, row["argument"])] * 2 + [(context, "")]


def template_of(model: dict) -> bool | str:
    """What says which template a model of the config is asked by: it may be edited in a local folder."""
    if not model["chat"] or model["source"] != "local":
        return model["chat"]
    folder = Path(model["path"]).expanduser()
    found = [folder / name for name in TEMPLATES if (folder / name).is_file()]
    return " ".join(f"{path.name} {file_crc32(path)}" for path in found) or True


def check_all(models: dict[str, dict], waiting: list[str]) -> None:
    """Problem at the first model of a config to chat with whose template is missing or fails.

    Of those that are `waiting` for stage `models` and are on this machine already; stage `prompts`
    says it of the others.
    """
    for name in waiting:
        if not models[name]["chat"]:
            continue
        if models[name]["source"] == "local":
            Chat(name, Path(models[name]["path"]).expanduser())
        if models[name]["source"] == "package":
            check_gguf(name, models[name])


def check_gguf(name: str, source: dict) -> None:
    """Problem unless the GGUF file of a package has a chat template that can be rendered."""
    from transformers.utils.chat_template_utils import render_jinja_template

    from vecsweep.engine.sources import package_files

    template = gguf_template(package_files(name, source))
    if template is None:
        raise Problem(f"model '{name}': its GGUF file {NONE.partition(',')[0]}")
    try:
        render_jinja_template(
            [messages(PROBE)],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="",
            eos_token="",
        )
    except Exception as error:  # jinja and the template raise their own
        raise Problem(
            f"model '{name}': the chat template in its GGUF file fails: {said(error)}; "
            "write chat: false"
        ) from error


def gguf_template(files: Sequence[Path]) -> str | None:
    """The chat template among the metadata of a GGUF file in parts; None if there is none.

    A text of GGUF is its key, the type 8, its length in bytes and those; reading all of the metadata
    would take as long as a vocabulary is large. Of several templates that without a name is meant.
    """
    # With its length: other templates' keys begin alike.
    key = struct.pack("<Q", len(GGUF_KEY)) + GGUF_KEY
    for number, path in enumerate(files):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(key)
            if start < 0:
                continue
            found = data[start + len(key) : start + len(key) + LONGEST]
        if number + 1 < len(files):
            with open(files[number + 1], "rb") as file:
                found += file.read(LONGEST)
        kind, length = struct.unpack_from("<IQ", found)
        return found[12 : 12 + length].decode() if kind == 8 else None
    return None


def said(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join((str(error) or repr(error)).split())[:300]
