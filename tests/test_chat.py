"""Prompts by a model's own chat template: the tokens of `apply_chat_template`, derived answers."""

import struct

import pytest
from transformers import AutoTokenizer

import tiny
from conftest import REPO, command
from test_config import SMALL, problem
from vecsweep import Problem, tasks
from vecsweep.engine.sources import package_files
from vecsweep.methods.controls import said_at
from vecsweep.stages import prompts
from vecsweep.tasks import chat
from vecsweep.tasks.chat import Chat, check_all, gguf_template
from vecsweep.tasks.rows import argument_ends

# Turns in tags; in brackets, with a space before what the assistant says; with an empty thought,
# which is none of the spaces that a word may follow.
TAGS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
THOUGHT = TAGS.replace("{{ m.content }}", "{{ '<think/>' * (m.role != 'user') }}{{ m.content }}")
FORMS = {"tags": (TAGS, ""), "brackets": (BRACKETS, " "), "thought": (THOUGHT, "")}


def folder_of(tmp_path, template):
    found = tiny.tokenizer(bos=True)
    found.chat_template = template
    found.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=FORMS)
def made(request, tmp_path):
    """(chat, its tokenizer, task, rows, what stands before an answer) of a form of template."""
    template, between = FORMS[request.param]
    folder = folder_of(tmp_path, template)
    talk, task = Chat("tiny", folder), tasks.load(tiny.write_task(tmp_path, "towns"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = {"demonstrations": 1, "seed": 0, "max_prompts": None}
    rows = prompts.build(task, tokenizer.backend_tokenizer, settings, chat=talk)
    return talk, tokenizer, task, rows, between


def said(role, content):
    return {"role": role, "content": content}


def test_tokens_are_those_of_apply_chat_template(made):
    talk, tokenizer, _, rows, between = made
    assert talk.between == between
    kept = [row for row in rows if row["dropped"] is None]
    assert {row["prompt_set"] for row in kept} == {"abstractive", "extractive", "novel"}
    for row in kept:
        argument, shown = row["argument"], row["demonstrations"]
        question = "Q: What is the capital of {}?\nA:".format
        turns = [
            said("user", question(shown)),
            said("assistant", tiny.CAPITALS[shown].split("|")[0]),
            said("user", question(argument)),
        ]
        if row["prompt_set"] == "extractive":
            facts = "".join(
                f"The capital of {one} is {tiny.CAPITALS[one].split('|')[0]}.\n"
                for one in (shown, argument)
            )
            turns[0] = said("user", facts + question(shown))
        if row["prompt_set"] == "novel":
            words = said("user", turned(row["text"], argument))
            turns = [words, said("assistant", argument)] * 2 + [words]
        expected = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
        assert row["token_ids"] == expected
        for key, word in (("argument_token", argument), ("answer_tokens", row["answer"])):
            # What the assistant says next, encoded with all that comes before it.
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            tokens = [
                tokenizer.encode(text + between + one, add_special_tokens=False)[len(expected)]
                for one in word.split("|")
            ]
            assert row[key] in (tokens[0], tokens)


def test_where_an_argument_ends_in_a_conversation(made, tmp_path):
    """The template writes the special tokens, once: the tokenizer would write them again."""
    _, tokenizer, _, rows, _ = made
    kept = [r for r in rows if r["dropped"] is None and r["prompt_set"] == "abstractive"]
    ends = argument_ends(tmp_path / "model" / "tokenizer.json", kept)
    for row, end in zip(kept, ends):
        ids = row["token_ids"]
        upto = tokenizer.decode(ids[: len(ids) - end + 1]).rstrip("?")
        assert upto.endswith(row["argument"]), upto
    wrong = [kept[0] | {"token_ids": kept[0]["token_ids"][1:]}]
    with pytest.raises(Problem, match="is not what made the prompts"):
        argument_ends(tmp_path / "model" / "tokenizer.json", wrong)


def test_unrelated_words_of_a_conversation(made):
    """Up to where the argument is first said: the words stand there, and it does not."""
    _, tokenizer, _, rows, _ = made
    for row in rows:
        if row["dropped"] is None and row["prompt_set"] == "novel":
            text = tokenizer.decode(row["token_ids"][: said_at(row)])
            assert row["argument"] not in text
            assert turned(row["text"], row["argument"]) in text


def test_an_edited_template_of_a_local_model_is_another_setting(tmp_path):
    folder = folder_of(tmp_path, TAGS)
    model = {"chat": True, "source": "local", "path": str(folder)}
    before = chat.template_of(model)
    assert before and before == chat.template_of(model)
    folder_of(tmp_path, BRACKETS)
    assert chat.template_of(model) not in (before, True)
    for other in ({"source": "hub"}, {"source": "package"}, {"chat": False}):
        assert chat.template_of(model | other) is (model | other)["chat"]


def turned(text, argument):
    """The three words of a novel context, from its text in any form."""
    words = {word for word in tasks.random_words() if word in text.replace(argument, "")}
    start = min(text.index(word) for word in words)
    return " ".join(text[start:].replace("<", " ").replace("[", " ").split()[:3])


def test_the_end_of_a_template_is_the_assistants(tmp_path):
    task = tasks.load(tiny.write_task(tmp_path, "verbs"))
    row, shown = task.rows[0], task.rows[1]
    turns = chat.question_turns(task, row, [shown], 0, extractive=False)
    assert turns == [("Today I see. Yesterday I", "saw."), ("Today I walk. Yesterday I", "")]


def test_copying_twins(tmp_path):
    copying = {"extractive": {"answer": "{argument}"}}
    task = tasks.load(tiny.write_task(tmp_path, "verbs", **copying))
    turns = chat.question_turns(task, task.rows[0], task.rows[1:2], 0, extractive=True)
    assert turns == [("Today I see. Yesterday I", "see."), ("Today I walk. Yesterday I", "")]


BROKEN = {
    "syntax": "{% for m in messages %}",
    "refuses": "{{ raise_exception('no users here') }}",
    "outside": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_template_that_fails(tmp_path, kind):
    folder = folder_of(tmp_path, BROKEN[kind])
    models = {"m": {"chat": True, "source": "local", "path": str(folder)}}
    with pytest.raises(Problem) as caught:  # before any job
        check_all(models, ["m"])
    line = str(caught.value)
    assert line.startswith(f"model 'm': the chat template in {folder} fails: ")
    assert line.endswith("mend it, or write chat: false") and "\n" not in line
    check_all(models | {"m": models["m"] | {"chat": False}}, ["m"])


def test_no_template(tiny_model, refused, tmp_path):
    stage = tiny_model("gpt2")
    task = tiny.write_task(tmp_path, "towns")
    inputs = {"model": stage.description, "task": task, "output": tmp_path / "out"}
    settings = {"demonstrations": 1, "seed": 0, "max_prompts": None, "chat": True}
    line = refused(command("prompts", **inputs, settings=settings))
    assert "has no chat template; write chat: false" in line
    with pytest.raises(Problem, match="has no chat template; write chat: false"):
        models = {"m": {"chat": True, "source": "local", "path": str(stage.folder)}}
        check_all(models, ["m"])


def gguf(template, **others):
    """The metadata of a GGUF file with a template, behind others as its writer puts them."""
    content = b"GGUF" + bytes(40)
    for name, text in {**others, "": template}.items():
        key = chat.GGUF_KEY + f".{name}".encode() * bool(name)
        content += struct.pack("<Q", len(key)) + key
        content += struct.pack("<IQ", 8, len(text.encode())) + text.encode()
    return content + bytes(100)


def test_the_template_of_a_gguf_file_in_parts(tmp_path):
    content = gguf(TAGS)
    parts = [tmp_path / "one", tmp_path / "two"]
    for cut in (len(content) - 130, len(content) - 1, 70 + len(chat.GGUF_KEY) + 20):
        parts[0].write_bytes(content[:cut])
        parts[1].write_bytes(content[cut:])
        assert gguf_template(parts) == TAGS
    parts[0].write_bytes(gguf(TAGS, tool_use=BRACKETS))
    assert gguf_template(parts[:1]) == TAGS
    parts[0].write_bytes(b"GGUF" + bytes(100))
    assert gguf_template(parts[:1]) is None


def packaged(name):
    """A packaged model's part of config.yaml; skips where the package is not installed."""
    import yaml

    source = yaml.safe_load((REPO / "config.yaml").read_text())["models"][name]
    try:
        package_files(name, source)
    except Problem as problem:
        pytest.skip(str(problem))
    return source | {"chat": True}


def test_packaged_models(tmp_path):
    instruct = packaged("smollm2-135m-instruct")
    template = gguf_template(package_files("smollm2", instruct))
    check_all({"m": instruct}, ["m"])
    talk = Chat("m", folder_of(tmp_path, template))
    assert talk.between == "" and talk.text([("a", "b"), ("c", "")]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(Problem, match="its GGUF file has no chat template; write chat: false"):
        check_all({"m": packaged("gemma3-270m")}, ["m"])


def test_no_prompts_in_common():
    models = {name: model | {"chat": name == "here"} for name, model in SMALL["models"].items()}
    said = problem(SMALL | {"models": models, "prompts": {"common": True}})
    assert "models > here: chat: true" in said and "common: false" in said
