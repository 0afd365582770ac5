"""Stage prompts: texts letter by letter, tokens as differences, what is dropped, and bad tasks."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tiny
from conftest import REPO, command, run_stage
from vecsweep import Problem, tasks
from vecsweep.config import checked
from vecsweep.layout import STAGES, Cell
from vecsweep.stages import prompts
from vecsweep.stages.prompts import build, continuation
from vecsweep.sweep import Sweep

SETTINGS = {"demonstrations": 1, "seed": 0, "max_prompts": None}
PACKAGED = REPO / "workflow" / "vecsweep" / "tasks"
TOKENIZER = tiny.tokenizer()
PLAIN = TOKENIZER.backend_tokenizer


def chosen(task, row, number=1, seed=0):
    """The demonstrations of a row."""
    return tasks.choose_demonstrations(tasks.demonstration_pool(task, seed), row, number)


def texts(task, argument, demonstrations=1, seed=0):
    """The abstractive and the extractive prompt of an argument."""
    row = next(r for r in task.rows if r["argument"] == argument)
    shown = chosen(task, row, demonstrations, seed)
    return tasks.abstractive_prompt(task, row, shown), tasks.extractive_prompt(task, row, shown)


def by_set(rows, prompt_set):
    return [row for row in rows if row["prompt_set"] == prompt_set]


# The paper's prompts


def test_capitals():
    task = tasks.load(PACKAGED / "capitals.yaml")
    abstractive, extractive = texts(task, "Poland")
    assert abstractive == (
        "Q: What is the capital of France?\nA: Paris\nQ: What is the capital of Poland?\nA:"
    )
    assert extractive == (
        "The capital of France is Paris.\nThe capital of Poland is Warsaw.\n" + abstractive
    )
    answers = {row["argument"]: row["answers"] for row in task.rows}
    assert answers["Poland"] == ["Warsaw"] and answers["China"] == ["Beijing"]
    assert len(task.rows) == 248  # as many as the paper has


def test_past_tense():
    task = tasks.load(PACKAGED / "past_tense.yaml")
    abstractive, _ = texts(task, "abolish")
    assert abstractive == "Today I abandon. Yesterday I abandoned. Today I abolish. Yesterday I"
    answers = {row["argument"]: row["answers"] for row in task.rows}
    assert answers["abolish"] == ["abolished"]


def test_colored_objects_and_their_copying_twin():
    task = tasks.load(PACKAGED / "colored_objects.yaml")
    assert len(task.rows) == 200
    for row in task.rows[:20]:
        shown = chosen(task, row)
        abstractive = tasks.abstractive_prompt(task, row, shown)
        extractive = tasks.extractive_prompt(task, row, shown)
        (answer,) = row["answers"]
        assert answer == row["argument"].capitalize() != row["argument"]
        assert tasks.extractive_answers(task, row) == [row["argument"]]
        # The form of the paper, section 3.
        first, second, question, last = abstractive.split("\n")
        assert first == f"Q: {shown[0]['scene']} What color is the {shown[0]['object']}?"
        assert second == f"A: {shown[0]['answers'][0]}"
        assert question == f"Q: {row['scene']} What color is the {row['object']}?"
        assert last == "A:" and row["scene"].startswith("On the ")
        # One character apart.
        assert len(abstractive) == len(extractive)
        changed = [(a, b) for a, b in zip(abstractive, extractive) if a != b]
        assert len(changed) == 1 and changed[0][0].lower() == changed[0][1]


def test_colored_objects_as_the_paper_prints_them(tmp_path):
    # The paper's own example, its scenes cut short as there.
    scenes = {
        "silver": ("On the floor, I see a silver keychain, a red pair of sunglasses, a gold sheet "
                   "of paper, a black dog leash, and a blue cat toy.", "keychain"),
        "brown": ("On the table, you see a brown sheet of paper.", "sheet of paper"),
    }  # fmt: skip
    path = tiny.write_task(
        tmp_path,
        "colors",
        templates=["Q: {scene} What color is the {object}?\nA: {answer}"],
        demonstrations=["silver"],
        extractive={"answer": "{argument}"},
    )
    with open(tmp_path / "colors.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["argument", "answer", "scene", "object"])
        writer.writerows([c, c.capitalize(), *scene] for c, scene in scenes.items())
    abstractive, extractive = texts(tasks.load(path), "brown")
    assert abstractive == (
        "Q: On the floor, I see a silver keychain, a red pair of sunglasses, a gold sheet of paper, "
        "a black dog leash, and a blue cat toy. What color is the keychain?\nA: Silver\n"
        "Q: On the table, you see a brown sheet of paper. What color is the sheet of paper?\nA:"
    )
    assert extractive == abstractive.replace("A: Silver", "A: silver")


def test_novel_contexts():
    words = tasks.random_words()
    assert len(words) == len(set(words)) > 100
    rows = build(tasks.load(PACKAGED / "capitals.yaml"), PLAIN, SETTINGS)
    seen = set()
    for row in by_set(rows, "novel"):
        # "table mug free China table mug free China table mug free"
        first, second, last = row["text"].split(f" {row['argument']} ")
        assert first == second == last and len(set(first.split(" "))) == 3
        assert set(first.split(" ")) <= set(words)
        # No hint of the relation: the argument alone says what would be the answer.
        assert row["argument"] not in first
        seen.add(first)
    assert len(seen) == 248


def test_random_words_give_no_packaged_word_away():
    used = set()
    for path in PACKAGED.glob("*.yaml"):
        for row in tasks.load(path).rows:
            used |= {word.lower() for word in [row["argument"], *row["answers"]]}
    assert not used & {word.lower() for word in tasks.random_words()}


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_task_is_sound(path):
    task = tasks.load(path)
    assert task.title and len(task.rows) >= 20
    for row in task.rows:
        assert len(set(row["answers"])) == len(row["answers"])
        for word in [row["argument"], *row["answers"]]:
            assert word == word.strip() and "  " not in word and "\n" not in word
    if "task" in task.out_of_domain:
        tasks.load(PACKAGED / f"{task.out_of_domain['task']}.yaml")
    if "group" in task.out_of_domain:
        groups = {row["group"] for row in task.rows}
        assert task.out_of_domain["group"] in groups and len(groups) > 1


# Tokens


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["towns", "verbs"])
def test_tokens_are_a_difference(tmp_path, name, bos):
    tokenizer = tiny.tokenizer(bos)
    rows = tiny.prompt_rows(name, folder=tmp_path, bos=bos)
    kept = [row for row in rows if row["dropped"] is None]
    assert len(kept) >= 12
    for row in kept:
        ids, text = row["token_ids"], row["text"]
        assert ids == tokenizer(text).input_ids and (ids[0] == 0) == bos
        assert tokenizer.decode(ids[bos:]) == text
        longer = tokenizer(f"{text} {row['argument']}").input_ids
        assert longer[: len(ids)] == ids and longer[len(ids)] == row["argument_token"]
        assert row["argument_length"] == len(longer) - len(ids)
        answers = [tokenizer(f"{text} {a}").input_ids[len(ids) :] for a in row["answer"].split("|")]
        assert row["answer_tokens"] == list(dict.fromkeys(answer[0] for answer in answers))
        assert row["answer_length"] == len(answers[0])
        assert row["argument_token"] not in row["answer_tokens"]
        sizes = ["one" if n == 1 else "several" for n in (row["argument_length"], len(answers[0]))]
        assert row["stratum"] == f"argument {sizes[0]}, answer {sizes[1]}"
        letters = tokenizer.decode(row["answer_tokens"][:1]).strip()
        assert row["first_token_letters"] == len(letters)


def test_word_is_never_encoded_alone():
    # With its space ` Poland` is one token; alone the word is several others.
    ids, longer = TOKENIZER([text := "Q: What is the capital of", f"{text} Poland"]).input_ids
    (token,) = continuation(ids, longer)
    assert TOKENIZER.decode([token]) == " Poland"
    assert TOKENIZER("Poland").input_ids != [token]
    # A text whose last token would grow with the word has no continuation.
    assert continuation([1, 2, 3], [1, 2, 4, 5]) is None


def test_strata_and_several_right_answers(tmp_path):
    rows = tiny.prompt_rows("towns", folder=tmp_path)
    found = {row["argument"]: row for row in by_set(rows, "abstractive")}
    assert found["Poland"]["stratum"] == "argument one, answer one"
    assert found["Egypt"]["answer_tokens"] == TOKENIZER(" Cairo").input_ids[:1]
    bolivia = found["Bolivia"]
    assert bolivia["answer"] == "Sucre|La Paz" and bolivia["argument_length"] > 1
    # ` Bolivia` and ` Sucre` may share a first token, a bare space; ` L` still tells them apart.
    assert TOKENIZER(" La").input_ids[0] in bolivia["answer_tokens"]
    assert bolivia["argument_token"] not in bolivia["answer_tokens"]


def write(folder, rows, **changes):
    return tasks.load(tiny.write_task(folder, "task", rows, **changes))


def test_same_first_token_is_dropped(tmp_path):
    pairs = {"see": "sees", "walk": "walk", "go": "went", "ran": "walk|ran", "abolish": "saw"}
    task = write(tmp_path, pairs)
    rows = build(task, PLAIN, SETTINGS | {"demonstrations": 0})
    # The same for all three sets of a pair: they are compared with each other.
    for row in rows:
        same = row["argument"] in ("see", "walk")
        assert row["dropped"] == (prompts.SAME_FIRST_TOKEN if same else None), row["argument"]
    # An answer that begins like the argument is no right answer, but another may be.
    ran = next(row for row in rows if row["argument"] == "ran")
    assert ran["answer_tokens"] == TOKENIZER(" walk").input_ids


def test_answers_that_no_token_tells_apart_are_named(tmp_path):
    # As numbers in tokenizers that begin each with a bare space; one answer for all is no fault.
    row = {"dropped": None, "prompt_set": "abstractive", "answer": "1946", "answer_tokens": [7]}
    assert prompts.only_token([row, row | {"answer": "1961"}]) == 7
    assert prompts.only_token([row, row]) is None
    assert prompts.only_token([row, row | {"answer": "1961", "answer_tokens": [8]}]) is None
    assert prompts.only_token([row, row | {"answer": "1961", "dropped": "over"}]) is None


def test_copying_twin_keeps_its_shared_token(tmp_path):
    task = write(tmp_path, {"go": "went", "see": "see"}, extractive={"answer": "{argument}"})
    rows = build(task, PLAIN, SETTINGS | {"demonstrations": 0})
    (go,) = [row for row in by_set(rows, "extractive") if row["argument"] == "go"]
    assert go["dropped"] is None and go["answer_tokens"] == [go["argument_token"]]
    # `see` answers with itself in the abstractive prompt: the pair is dropped from both.
    assert {row["dropped"] for row in rows if row["argument"] == "see"} == {
        prompts.SAME_FIRST_TOKEN
    }


def test_too_long_for_the_context(tmp_path):
    pairs = {"Poland": "Warsaw", "Abu Simbel in Egypt": "Cairo", "Peru": "Lima"}
    task = write(tmp_path, pairs, demonstrations=["Peru", "Poland"])
    lengths = {
        row["argument"]: len(row["token_ids"])
        for row in by_set(build(task, PLAIN, SETTINGS), "extractive")
    }
    context = lengths["Abu Simbel in Egypt"]
    assert context > lengths["Poland"]
    rows = build(task, PLAIN, SETTINGS, context)
    dropped = {row["argument"]: row["dropped"] for row in rows}
    assert dropped["Abu Simbel in Egypt"] == f"longer than the model's context of {context} tokens"
    assert dropped["Poland"] is None


# Which pairs, which demonstrations


def test_cap_is_seeded_and_said(tmp_path):
    task = tasks.load(tiny.write_task(tmp_path, "towns"))
    whole = build(task, PLAIN, SETTINGS)

    def kept(rows):
        return {row["prompt_id"] for row in rows if row["dropped"] is None}

    capped = build(task, PLAIN, SETTINGS | {"max_prompts": 5})
    assert len(capped) == len(whole) == 3 * len(task.rows)
    assert len(kept(capped)) == 5 and kept(capped) < kept(whole)
    said = {row["dropped"] for row in capped if row["prompt_id"] in kept(whole) - kept(capped)}
    assert said == {"over max_prompts: 5"}
    for prompt_set in ("abstractive", "extractive", "novel"):
        assert kept(by_set(capped, prompt_set)) == kept(capped)
    assert build(task, PLAIN, SETTINGS | {"max_prompts": 5}) == capped
    other = [build(task, PLAIN, SETTINGS | {"max_prompts": 5, "seed": s}) for s in range(1, 6)]
    assert any(kept(rows) != kept(capped) for rows in other)
    # A cap above what there is drops nothing.
    assert build(task, PLAIN, SETTINGS | {"max_prompts": 999}) == whole


def test_common_keeps_what_every_model_keeps(tmp_path):
    task = tasks.load(tiny.write_task(tmp_path, "towns"))
    whole = build(task, PLAIN, SETTINGS)
    lengths = [len(row["token_ids"]) for row in whole if row["dropped"] is None]
    # The other model's context is too short for the longest.
    other = prompts.Reader("small", PLAIN, max(lengths))
    rows = build(task, PLAIN, SETTINGS, others=[other])
    said = {row["dropped"] for row in rows} - {None, prompts.SAME_FIRST_TOKEN}
    assert said == {f"small: longer than the model's context of {max(lengths)} tokens"}
    theirs = build(task, PLAIN, SETTINGS, max(lengths))
    assert [row["dropped"] is None for row in rows] == [row["dropped"] is None for row in theirs]

    # A special token that the other one puts before all counts.
    longer = prompts.Reader("small", tiny.tokenizer(bos=True).backend_tokenizer, max(lengths) + 1)
    rows = build(task, PLAIN, SETTINGS, others=[longer])
    assert {row["dropped"] for row in rows} - {None, prompts.SAME_FIRST_TOKEN} == {
        f"small: longer than the model's context of {max(lengths) + 1} tokens"
    }


def test_common_reads_the_other_models():
    def inputs(**changes):
        given = {
            "models": dict.fromkeys("cab", tiny.config("gpt2", "x")),
            "tasks": {"capitals": {}},
        }
        sweep = Sweep(checked(given | {"prompts": changes}))
        cell = Cell("a", "capitals")
        settings = sweep.settings(STAGES["prompts"], cell)["common"]
        return sweep.inputs(STAGES["prompts"], cell)["others"], settings

    assert inputs() == ([], [])
    found = [f"results/models/{name}/model.json" for name in "cb"]
    assert inputs(common=True) == (found, ["b", "c"])


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("named", [["France", "Japan"], []])
def test_demonstrations(tmp_path, number, named):
    task = tasks.load(tiny.write_task(tmp_path, "towns", demonstrations=named))
    for row in task.rows:
        shown = chosen(task, row, number)
        assert len(shown) == number == len({r["argument"] for r in shown})
        assert row not in shown
        expected = [name for name in named if name != row["argument"]][:number]
        assert [r["argument"] for r in shown][: len(expected)] == expected
        text = tasks.abstractive_prompt(task, row, shown)
        blocks = [
            f"Q: What is the capital of {r['argument']}?\nA: {r['answers'][0]}" for r in shown
        ]
        blocks.append(f"Q: What is the capital of {row['argument']}?\nA:")
        assert text == "\n".join(blocks)
        # The answer stands nowhere in the abstractive prompt, and in the twin it does.
        assert row["answers"][0] not in text
        assert row["answers"][0] in tasks.extractive_prompt(task, row, shown)


def test_demonstrations_are_shared_and_seeded(tmp_path):
    task = tasks.load(tiny.write_task(tmp_path, "towns", demonstrations=[]))

    def shown(seed):
        picked = [chosen(task, row, 2, seed) for row in task.rows]
        return [tuple(r["argument"] for r in rows) for rows in picked]

    first = shown(0)
    # All but the two rows that are themselves the demonstrations.
    assert max(first.count(pair) for pair in first) == len(task.rows) - 2
    assert shown(0) == first and any(shown(seed) != first for seed in (1, 2, 3))


def test_same_argument_twice_is_no_demonstration_of_itself(tmp_path):
    path = tiny.write_task(tmp_path, "towns", demonstrations=[])
    (tmp_path / "towns.csv").write_text("argument,answer\nPeru,Lima\nPeru,Cusco\nCuba,Havana\n")
    task = tasks.load(path)
    for row in task.rows:
        shown = chosen(task, row, 3)
        assert row["argument"] not in [r["argument"] for r in shown]


def test_more_demonstrations_than_rows(tmp_path):
    task = write(tmp_path, {"Peru": "Lima", "Cuba": "Havana"})
    assert len(chosen(task, task.rows[0], 5)) == 1


@pytest.mark.parametrize("demonstrations", [["France"], []])
def test_a_row_more_changes_no_other_rows_words(tmp_path, demonstrations):
    def novel(rows):
        task = write(tmp_path, rows, demonstrations=demonstrations)
        found = by_set(build(task, PLAIN, SETTINGS), "novel")
        return {row["argument"]: row["text"] for row in found}

    before = novel(tiny.CAPITALS)
    after = novel({"Kenya2": "Mombasa"} | tiny.CAPITALS | {"Chile": "Santiago"})
    assert {argument: after[argument] for argument in before} == before
    assert len(after) == len(before) + 2


# The file that the stage writes


def test_stage(tiny_model, tmp_path):
    output = tmp_path / "towns.parquet"
    task = tiny.write_task(tmp_path, "towns")
    inputs = {"model": tiny_model("opt").description, "task": task, "output": output}
    settings = SETTINGS | {"max_prompts": 6}
    run_stage("prompts", **inputs, settings=json.dumps(settings))
    table = pq.read_table(output)
    rows = table.to_pylist()
    expected = build(tasks.load(task), tiny.tokenizer(bos=True).backend_tokenizer, settings, 256)
    assert len(rows) == len(expected)
    for row, built in zip(rows, expected):
        assert {key: row[key] for key in built} == built
    assert {row["model"] for row in rows} == {"opt"} and {row["task"] for row in rows} == {"towns"}
    assert {(row["title"], row["kind"]) for row in rows} == {("Towns", "one-to-one")}
    # States and lens rely on this order: prompts of a set and template stand together.
    keys = [(row["prompt_set"], row["template"], row["prompt_id"]) for row in rows]
    assert keys == sorted(keys) and len(keys) == 3 * len(tiny.CAPITALS)
    assert [key[0] for key in keys[:: len(tiny.CAPITALS)]] == ["abstractive", "extractive", "novel"]


# Sources


def test_big_bench_json(tmp_path):
    examples = [
        {"input": "Peru", "target": "Lima"},
        {"input": "Bolivia ", "target": ["Sucre", "La Paz"]},
        {"input": "Cuba", "target_scores": {"Lima": 0, "Havana": 1, "La Habana": 1}},
    ]
    (tmp_path / "task.json").write_text(json.dumps({"name": "towns", "examples": examples}))
    task = write(tmp_path, {}, data="task.json")
    assert task.rows == [
        {"argument": "Peru", "answers": ["Lima"]},
        {"argument": "Bolivia", "answers": ["Sucre", "La Paz"]},
        {"argument": "Cuba", "answers": ["Havana", "La Habana"]},
    ]


def test_csv(tmp_path):
    # A byte order mark, quotes, a comma and a line break in a cell, several answers, spaces.
    path = tiny.write_task(
        tmp_path, "task", templates=["{note}: {argument} {answer}"], separator="\n"
    )
    text = 'answer,argument,note\nLima , Peru ,"a, ""b"""\nSucre| La Paz,Bolivia,"two\nlines"\n'
    (tmp_path / "task.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    rows = tasks.load(path).rows
    assert [(r["argument"], r["answers"]) for r in rows] == [
        ("Peru", ["Lima"]),
        ("Bolivia", ["Sucre", "La Paz"]),
    ]
    assert rows[0]["note"] == 'a, "b"' and rows[1]["note"].split() == ["two", "lines"]


# Bad tasks: one clear line each, with the file's name


def bad(
    name, data="argument,answer\nPeru,Lima\nCuba,Havana\n", file="task.csv", says="", **changes
):
    return pytest.param(data, file, changes, says, id=name)


BAD = [
    bad("no-answer-column", "argument,reply\nPeru,Lima\n", says="no column 'answer'"),
    bad("no-argument-column", "word,answer\nPeru,Lima\n", says="no column 'argument'"),
    bad("nothing", "", says="no column 'argument'"),
    bad("no-rows", "argument,answer\n", says="the task is empty"),
    bad("empty-answer", "argument,answer\nPeru,\n", says="empty argument or answer"),
    bad("empty-second-answer", "argument,answer\nPeru,Lima|\n", says="empty argument or answer"),
    bad("cell-too-many", "argument,answer\nPeru,Lima,x\n", says="line 2"),
    bad("cell-too-few", "argument,answer\nPeru\n", says="line 2"),
    bad("not-utf-8", "argument,answer\nPerú,Lima\n".encode("latin-1"), says="task.csv"),
    bad("open-quote", 'argument,answer\nPeru,"Lima\n', says="not CSV"),
    bad("no-data-file", file="other.csv", says="task.csv"),
    bad("unknown-key", says="unknown key 'template' (did you mean 'templates'?)", template="x"),
    bad("missing-key", says="the key 'separator' is missing", separator=None),
    bad("kind", says="kind 'many' is none of one-to-one", kind="many"),
    bad("template-column", says="'{town}'", templates=["{town} {answer}"]),
    bad("template-position", says="'{}'", templates=["{} {answer}"]),
    bad("template-without-answer", says="has no {answer}", templates=["Capital of {argument}:"]),
    bad("template-brace", says="template", templates=["Capital of {argument: {answer}"]),
    bad("template-number", says="templates > 1 must be text", templates=[5]),
    bad("template-text", says="templates must be a list, not", templates="{argument} {answer}"),
    bad("template-none", says="templates: must not be empty", templates=[]),
    bad("template-second", says="\"{argument}\" has no {answer}", templates=["{argument} {answer}", "{argument}"]),
    bad("template-twice", says="twice", templates=["{argument} {answer} {answer}"]),
    bad("template-same", says="asks the same for every row", templates=["Capital: {answer}"]),
    bad("template-turned", says="turn the sentence round", templates=["Its {answer} of {argument}"]),
    bad("template-space-or-not", says="some have none", templates=["{argument}:{answer}", "{argument}: {answer}"]),
    bad("template-two-spaces", says="several spaces before {answer}", templates=["{argument}:  {answer}"]),
    bad("template-format", says="without : or !", templates=["{argument!r} {answer}"]),
    bad("template-list-of-answers", says="'{answers}'", templates=["{argument} {answers} {answer}"]),
    bad("data-number", says="data must be text, not 5", data_key=5),
    bad("title-number", says="title must be text, not 5; put words in quotes", title=5),
    bad("two-headers", "argument,answer,argument\nPeru,Lima,x\n", says="column 'argument' twice"),
    bad("one-row", "argument,answer\nPeru,Lima\n", says="one row is no relation"),
    bad("one-argument", "argument,answer\nPeru,Lima\nPeru,Cuzco\n", says="the argument 'Peru'"),
    bad(
        "same-row-twice",
        "argument,answer\nPeru,Lima\nCuba,Havana\nPeru,Lima|Cusco\n",
        says="rows 1 and 3 are the same pair, 'Peru' and 'Lima'",
    ),
    bad("extractive-column", says="'{town}'", extractive={"prefix": "{town} "}),
    bad("extractive-both", says="extractive", extractive={"prefix": "a", "answer": "b"}),
    bad("extractive-text", says="extractive", extractive="{argument}"),
    bad("extractive-number", says="extractive > prefix must be text", extractive={"prefix": 3}),
    bad("extractive-key", says="extractive: unknown key 'prefx' (did you mean 'prefix'?)", extractive={"prefx": "a"}),
    bad("extractive-no-answer", says="has no {answer}", extractive={"prefix": "Of {argument}. "}),
    bad("extractive-same", says="the same for every row", extractive={"answer": "yes"}),
    bad("demonstration", says="demonstration 'Mars'", demonstrations=["Mars"]),
    bad("demonstration-text", says="demonstrations must be a list", demonstrations="Peru"),
    bad("demonstration-number", says="demonstration", demonstrations=3),
    bad("out-of-domain", says="out_of_domain must be a mapping", out_of_domain="us_capitals"),
    bad("out-of-domain-key", says="unknown key 'grup' (did you mean 'group'?)", out_of_domain={"grup": "x"}),
    bad("out-of-domain-group", says="group 'odd'", out_of_domain={"group": "odd"}),
    bad(
        "json", '{"examples": [{"input": "Peru"}]}', "task.json", "not a BIG-bench task",
        data_key="task.json",
    ),
    bad("json-cut", '{"examples": [', "task.json", "not JSON", data_key="task.json"),
    bad("json-list", "[1, 2]", "task.json", "not a function vectors", data_key="task.json"),
    bad("json-empty", '{"examples": []}', "task.json", "the task is empty", data_key="task.json"),
    bad(
        "json-no-right-answer",
        '{"examples": [{"input": "Peru", "target_scores": {"Lima": 0}}]}',
        "task.json",
        "empty argument or answer",
        data_key="task.json",
    ),
    bad(
        "json-number", '{"examples": [{"input": 3, "target": "4"}]}', "task.json",
        "not a BIG-bench task", data_key="task.json",
    ),
]  # fmt: skip


@pytest.mark.parametrize("data, file, changes, says", BAD)
def test_bad_task(tmp_path, data, file, changes, says):
    changes = dict(changes)
    if "data_key" in changes:
        changes["data"] = changes.pop("data_key")
    path = tiny.write_task(tmp_path, "task", **{"demonstrations": None} | changes)
    (tmp_path / "task.csv").unlink()
    (tmp_path / file).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(Problem) as caught:
        tasks.load(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and says in line
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "No such file"),
        (b"title: [", "not YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "is a mapping"),
        (b"- a\n- b\n", "is a mapping"),
    ],
    ids=["missing", "cut", "bytes", "empty", "list"],
)
def test_bad_task_file(tmp_path, content, says):
    path = tmp_path / "task.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match=says) as caught:
        tasks.load(path)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)


def test_no_prompt_left(tiny_model, tmp_path, refused):
    task = tiny.write_task(tmp_path, "task", {"Poland": "Poland", "see": "sees"})
    output = tmp_path / "task.parquet"
    inputs = {"model": tiny_model("gpt2").description, "task": task, "output": output}
    line = refused(command("prompts", **inputs, settings=json.dumps(SETTINGS)))
    assert "task 'task': no prompt is left" in line and prompts.SAME_FIRST_TOKEN in line
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "task.csv", task]
