"""Splits, templates and the cap: what stays together, what a row more moves, what two models share."""

import random
from collections import Counter

import pytest

import tiny
from conftest import REPO
from vecsweep import tasks
from vecsweep.stages.prompts import SAME_FIRST_TOKEN, build
from vecsweep.tasks.rows import unseen
from vecsweep.tasks.splits import SHARES, deal, groups_of, is_outside, split_rows

SETTINGS = {"demonstrations": 1, "seed": 0, "max_prompts": None}
PACKAGED = REPO / "workflow" / "vecsweep" / "tasks"


def made(rows, kind="one-to-one", **changes):
    """A task of rows (argument, answers, other columns...), without files."""
    rows = [{"argument": a, "answers": list(answers)} | more for a, answers, more in rows]
    base = {
        "name": "made", "title": "Made", "separator": "\n", "data": "made.csv",
        "templates": ["{argument} is {answer}.", "Of {argument}: {answer}"],
    }  # fmt: skip
    return tasks.Task(kind=kind, rows=rows, **base | changes)


def some_task(number):
    """A random task: shared answers, several answers, inverses, twins in case, lemmas, a group."""
    draw = random.Random(f"some task {number}")
    count = draw.randint(12, 90)
    kind = draw.choice(["one-to-one", "many-to-one", "one-to-many"])
    answers = draw.choice([3, 8, count, 3 * count])
    grouped, inverses = draw.random() < 0.3, draw.random() < 0.5
    rows, seen = [], set()
    for i in range(count):
        argument = f"w{i}" if draw.random() < 0.9 else f"W{draw.randrange(count)}"
        accepted = [f"a{draw.randrange(answers)}"]
        if kind == "one-to-many" or draw.random() < 0.1:
            accepted += [f"a{draw.randrange(answers)}" for _ in range(draw.randint(1, 3))]
        if inverses and i % 2:
            before = rows[-1]
            argument = before[1][0].swapcase()
            accepted = [before[0]]
        more = {"lemma": f"l{draw.randrange(count)}" if draw.random() < 0.1 else ""}
        more["group"] = "odd" if grouped and draw.random() < 0.2 else "even"
        if (argument, accepted[0]) not in seen:
            seen.add((argument, accepted[0]))
            rows.append((argument, list(dict.fromkeys(accepted)), more))
    changes = {"out_of_domain": {"group": "odd"}} if grouped else {}
    return made(rows, kind, **changes)


TASKS = [some_task(number) for number in range(60)]


def low(words):
    return {word.casefold() for word in words}


def tied(task, one, other, answers):
    """Whether two rows must stay together, said anew."""
    a, b = one["argument"].casefold(), other["argument"].casefold()
    shared = low(one["answers"][:answers]) & low(other["answers"][:answers])
    inverse = a in low(other["answers"]) and b in low(one["answers"])
    return a == b or inverse or bool(one["lemma"] and one["lemma"] == other["lemma"]) or shared


def links(task):
    """How many answers link the rows of a task: as the docstring of `splits` has it."""
    for answers in (1, 0) if task.kind == "one-to-many" else (None, 1, 0):
        groups = groups_of(task, answers)
        inside = [len(g) for g in groups if not any(is_outside(task, task.rows[i]) for i in g)]
        if len(inside) >= 3 and 2 * max(inside) <= sum(inside):
            return answers
    return 0


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_what_tells_of_each_other_is_in_one_split(number):
    task = TASKS[number]
    for seed in range(3):
        split, answers = split_rows(task, seed), links(task)
        for i, one in enumerate(task.rows):
            for j, other in enumerate(task.rows[:i]):
                if tied(task, one, other, answers):
                    assert split[i] == split[j], (one, other)
        for row, name in zip(task.rows, split):
            assert name in SHARES and not (name == "train" and is_outside(task, row))


def test_ratio_and_no_empty_split():
    whole = Counter()
    for task in TASKS:
        split = Counter(split_rows(task, 0))
        inside = [g for g in groups_of(task, links(task))
                  if not any(is_outside(task, task.rows[i]) for i in g)]  # fmt: skip
        if len(inside) >= 3:
            assert set(split) == set(SHARES)
        if not task.out_of_domain:
            whole += split
            # A group more or less is the most that a split is off, with the large ones first.
            largest = max(map(len, inside))
            for name, share in SHARES.items():
                assert abs(split[name] - len(task.rows) * share / 5) <= max(2, largest)
    total = sum(whole.values())
    assert abs(whole["train"] / total - 0.4) < 0.02 and abs(whole["dev"] / total - 0.2) < 0.02


@pytest.mark.parametrize("count", [3, 4, 5, 7, 13, 100, 101])
def test_single_rows_are_split_to_the_row(count):
    rows = [(f"w{i}", [f"a{i}"], {}) for i in range(count)]
    for seed in range(5):
        found = Counter(split_rows(made(rows), seed))
        assert set(found) == set(SHARES)
        for name, share in SHARES.items():
            assert abs(found[name] - count * share / 5) <= 1
    assert split_rows(made(rows), 0) == split_rows(made(rows), 0)
    if count > 5:
        assert len({tuple(split_rows(made(rows), seed)) for seed in range(5)}) > 1


def test_few_answers():
    # Two answers: no split could keep them apart. Three can.
    two = made([(f"w{i}", [f"a{i % 2}"], {}) for i in range(40)], "many-to-one")
    assert Counter(split_rows(two, 0)) == {"train": 16, "dev": 8, "test": 16}
    three = made([(f"w{i}", [f"a{i % 3}"], {}) for i in range(40)], "many-to-one")
    of_answer = {(row["answers"][0], s) for row, s in zip(three.rows, split_rows(three, 0))}
    assert len(of_answer) == 3 == len({s for _, s in of_answer})
    # A row with two answers would tie them all: it goes with its first one.
    rows = [(f"w{i}", [f"a{i % 4}"], {}) for i in range(40)]
    rows += [(f"both{i}", [f"a{i}", f"a{i + 1}"], {}) for i in range(3)]
    tied_all = made(rows, "many-to-one")
    assert len(groups_of(tied_all, None)) == 1 and links(tied_all) == 1
    split = split_rows(tied_all, 0)
    for i in range(3):
        assert split[40 + i] == split[i]


def test_dealing_large_groups():
    # The large ones first, each to the split with the most room; then the small ones fill up.
    sizes = [50, 30, 10, *[1] * 10]
    found = deal(sizes, list(range(len(sizes))), SHARES)
    assert [found[0], found[1]] == ["train", "test"]
    rows = Counter()
    for size, name in zip(sizes, found):
        rows[name] += size
    assert rows == {"train": 50, "test": 35, "dev": 15}
    assert deal([], [], SHARES) == [] and deal([4], [0], SHARES) == ["train"]


def test_a_row_more_moves_little():
    """What a row that is tied to no other changes: at most one small group at each of two cuts,
    no template, no priority, and a demonstration only where the new row becomes it."""
    for number in range(40):
        draw = random.Random(f"more {number}")
        # No large group: inverse pairs and single rows only.
        rows = [(f"w{i}", [f"a{i}"], {}) for i in range(draw.randint(40, 120))]
        rows += [(a[0], [w], {}) for w, a, _ in rows[: len(rows) // 4]]
        draw.shuffle(rows)
        place = draw.randrange(len(rows))
        before, after = made(rows), made(rows[:place] + [("new", ["newer"], {})] + rows[place:])
        then, now = split_rows(before, 0), split_rows(after, 0)
        del now[place]
        moved = {frozenset((r[0], r[1][0])) for r, a, b in zip(rows, then, now) if a != b}
        assert len(moved) <= 2
        for purpose in ("cap", "template"):
            old = [tasks.seeded(before, row, purpose, 0) for row in before.rows]
            new = [tasks.seeded(after, row, purpose, 0) for row in after.rows]
            assert new[:place] + new[place + 1 :] == old
        shown = [
            [chosen["argument"] for row in task.rows if row["argument"] != "new"
             for chosen in tasks.choose_demonstrations(tasks.demonstration_pool(task, 0), row, 1)]
            for task in (before, after)
        ]  # fmt: skip
        changed = {new for old, new in zip(*shown) if old != new}
        assert changed <= {"new"}


def test_a_row_more_moves_little_in_any_task():
    moved = rows = 0
    for task in TASKS:
        more = made([("new", ["newer"], {"lemma": "", "group": "even"})], task.kind)
        after = tasks.Task(**vars(task) | {"rows": [*more.rows, *task.rows]})
        if links(after) == links(task):
            pairs = zip(split_rows(task, 0), split_rows(after, 0)[1:])
            moved += sum(a != b for a, b in pairs)
            rows += len(task.rows)
    assert rows > 2000 and moved / rows < 0.05


def test_no_demonstration_gives_its_prompt_away():
    for task in TASKS:
        pool = tasks.demonstration_pool(task, 0)
        for row in task.rows:
            own = low([row["argument"], *row["answers"]])
            for number in (1, 3):
                shown = tasks.choose_demonstrations(pool, row, number)
                assert len({r["argument"] for r in shown}) == len(shown) <= number
                for one in shown:
                    assert one["argument"].casefold() not in own  # the same, or an inverse
                    assert not low(one["answers"]) & own
            fits = [r for r in task.rows if not low([r["argument"], *r["answers"]]) & own]
            assert bool(tasks.choose_demonstrations(pool, row, 1)) == bool(fits)


def test_named_demonstrations_the_first_that_fits():
    rows = [("hot", ["cold"], {}), ("cold", ["hot"], {}), ("Cool", ["WARM", "hot"], {})]
    rows += [("big", ["small"], {}), ("old", ["young"], {})]
    task = made(rows, demonstrations=["hot", "old", "big"])
    pool = tasks.demonstration_pool(task, 0)
    shown = [tasks.choose_demonstrations(pool, row, 1)[0]["argument"] for row in task.rows]
    assert shown == ["old", "old", "old", "hot", "hot"]


def test_templates_are_dealt_evenly_and_stand_together():
    rows = [(f"w{i}", [f"a{i}"], {"lemma": ""}) for i in range(300)]
    task = made(rows)
    first = {row["argument"]: tasks.template_of(task, row, 0) for row in task.rows}
    assert 120 < list(first.values()).count(0) < 180
    assert first != {row["argument"]: tasks.template_of(task, row, 1) for row in task.rows}
    found = build(made(rows[:40]), tiny.tokenizer().backend_tokenizer, SETTINGS)
    assert {row["prompt_set"] for row in found} == {"abstractive", "novel"}  # nothing to extract
    keys = [(row["prompt_set"], row["template"], row["prompt_id"]) for row in found]
    assert keys == sorted(keys)
    for row in found:
        assert row["template"] == first[row["argument"]]
        if row["prompt_set"] == "abstractive":
            question = f"Of {row['argument']}:" if row["template"] else f"{row['argument']} is"
            assert row["text"].split("\n")[1] == question
            shown = row["demonstrations"]
            starts = f"Of {shown}: a" if row["template"] else f"{shown} is a"
            assert row["text"].startswith(starts)
    # Independent of the split: no split has one template only.
    assert len({(row["split"], row["template"]) for row in found}) == 6


def test_answer_in_prompt(tmp_path):
    task = tasks.load(tiny.write_task(tmp_path, "towns"))
    for row in build(task, tiny.tokenizer().backend_tokenizer, SETTINGS):
        assert row["answer_in_prompt"] == (row["prompt_set"] == "extractive"), row["text"]
    assert tasks.stands_in(["Rome"], "the rome of") and not tasks.stands_in(["Rome"], "Romeo")
    assert tasks.stands_in(["x", "N.Y."], "in N.Y.") and not tasks.stands_in(["a b"], "a  b")
    # Novel prompts too: the argument itself may hold the answer.
    task = made([("New York", ["york"], {}), ("Lima", ["Peru"], {})])
    found = {
        row["argument"]: row for row in build(task, tiny.tokenizer().backend_tokenizer, SETTINGS)
    }
    assert found["New York"]["answer_in_prompt"] and not found["Lima"]["answer_in_prompt"]


@pytest.mark.parametrize("most", [80, 9])
@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_prompt_shows_is_known_whatever_was_dropped(path, most):
    """Of 80 prompts on continents 52 had the answer of a demonstration that the cap had dropped."""
    task, tokenizer = tasks.load(path), tiny.tokenizer().backend_tokenizer
    whole = {}
    for row in build(task, tokenizer, SETTINGS):
        if row["prompt_set"] == "novel":
            whole.setdefault(row["argument"], set()).update(row["answer_tokens"] or ())
    rows = [
        row
        for row in build(task, tokenizer, SETTINGS | {"max_prompts": most})
        if row["dropped"] is None and row["prompt_set"] == "novel"
    ]
    for row in rows:
        shown = row["demonstrations"].split("|")
        assert set().union(*(whole[name] for name in shown)) <= {*row["shown_tokens"]}
        fair = unseen(rows, rows, {row["prompt_id"]})
        for name in shown:
            assert not [other for other in fair if whole[name] & {*other["answer_tokens"]}]


def test_two_tokenizers_share_the_capped_pairs():
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeio" for c in "lmnrst"]
    task = made([(word, [word[::-1].capitalize()], {}) for word in words])
    kept, dropped = [], []
    # Each has its own few arguments that it does not know: they start as the answer, and are dropped.
    for bos, unknown in ((False, words[:5]), (True, words[3:9])):
        tokenizer = tiny.tokenizer(bos)
        tokenizer.add_tokens([f" {word}" for word in words if word not in unknown])
        found = build(task, tokenizer.backend_tokenizer, SETTINGS | {"max_prompts": 60})
        kept.append({row["prompt_id"] for row in found if row["dropped"] is None})
        dropped.append({row["prompt_id"] for row in found if row["dropped"] == SAME_FIRST_TOKEN})
    assert len(kept[0]) == len(kept[1]) == 60 and dropped[0] != dropped[1] != set()
    assert len(kept[0] & kept[1]) >= 54
    assert kept[0] != set(range(len(words) - 60, len(words))) != set(range(60))


def test_cap_keeps_a_quarter_for_the_group():
    rows = [(f"w{i}", [f"a{i}"], {"group": "odd" if i < 30 else "even"}) for i in range(100)]
    task = made(rows, out_of_domain={"group": "odd"})
    found = build(task, tiny.tokenizer().backend_tokenizer, SETTINGS | {"max_prompts": 20})
    kept = [r for r in found if r["dropped"] is None and r["prompt_set"] == "novel"]
    assert Counter(row["out_of_domain"] for row in kept) == {True: 5, False: 15}
    assert {row["split"] for row in found if row["out_of_domain"]} == {"dev", "test"}


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_task_has_all_splits(path):
    task = tasks.load(path)
    found = Counter(
        split for row, split in zip(task.rows, split_rows(task, 0)) if not is_outside(task, row)
    )
    total = sum(found.values())
    assert set(found) == set(SHARES)
    for name, share in SHARES.items():
        assert abs(found[name] / total - share / 5) < 0.1
