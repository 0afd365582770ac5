"""Stage tuned: translators are fitted on train prompts alone, and find what a rotation hides."""

import random

import duckdb
import pytest
import torch

import tiny
from conftest import command, main, run_stage
from test_config import SMALL
from vecsweep import tables
from vecsweep.config import checked
from vecsweep.engine.readout import Readout
from vecsweep.engine.translators import SAMPLED, divergence, ends_of, fit, tokens_for
from vecsweep.files import Tensors, read_table, write_tensors
from vecsweep.layout import STAGES, Cell
from vecsweep.stages.tuned import deal
from vecsweep.sweep import Sweep
from vecsweep.tasks.rows import CAPTURED, kept_rows

PAIRS = 100
LAST = tiny.layers_of("gpt2") - 1


def readout_of(vocabulary=300, d_model=16, bias=True):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocabulary, d_model, generator=generator)
    noise = torch.randn(d_model, generator=generator), torch.randn(vocabulary, generator=generator)
    return Readout("layer", 1e-5, 1 + 0.2 * noise[0], 0.3 * noise[0], weight, noise[1] * bias)


def rotation(d_model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q


def test_kl_is_that_of_whole_distributions():
    readout = readout_of()
    generator = torch.Generator().manual_seed(0)
    final, other = (2 * torch.randn(40, 16, generator=generator) for _ in range(2))
    normed = readout.normed(other)
    tokens = tokens_for(readout, torch.zeros(1, 1, dtype=torch.long), 0)
    found = divergence(ends_of(readout, final), normed, tokens.log_sum(normed))
    end, lens = (readout.logits(readout.normed(x)).double().log_softmax(-1) for x in (final, other))
    expected = torch.nn.functional.kl_div(lens, end, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(found.double(), expected, atol=1e-4)


def test_sampled_tokens_stand_for_the_vocabulary():
    readout = readout_of(vocabulary=5 * SAMPLED)
    states = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    normed = readout.normed(states)
    tokens = tokens_for(readout, ends_of(readout, states).top, 0)
    assert len(tokens.offset) < 0.4 * len(readout.weight)
    exact = readout.logits(normed).logsumexp(-1)
    error = tokens.log_sum(normed) - exact  # a fifth of the vocabulary alone would be off by more
    assert error.abs().max() < 0.1 and error.mean().abs() < 0.01


def test_a_rotation_is_undone():
    # Of the plain lens nothing is left; held-out prompts and new ones are read as the end is.
    readout = readout_of()
    final = 2 * torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    states = 3 * final @ rotation(16).T + 1
    train, new = slice(0, 200), slice(200, 300)
    ends, others = ends_of(readout, final[train]), ends_of(readout, final[new])
    held = torch.arange(200) >= 160
    tokens = tokens_for(readout, ends.top, 0)
    translator = fit(readout, tokens, states[train], ends, held)

    def kl(x):
        normed = readout.normed(x)
        return divergence(others, normed, tokens.log_sum(normed)).mean().item()

    assert kl(states[new]) > 3 and kl(translator(states[new])) < 0.01
    tops = [readout.logits(readout.normed(x)).argmax(-1) for x in (translator(states), final)]
    assert (tops[0] == tops[1])[new].float().mean() > 0.95
    # The end itself needs no translation: the ridge leaves it as it is.
    same = fit(readout, tokens, final[train], ends, held)
    assert torch.allclose(same(final), final, atol=1e-2)


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """Results of a tiny model and PAIRS made-up pairs, with layer 0 the end, rotated."""
    results = tmp_path_factory.mktemp("results")
    model = tiny_model("gpt2")
    paths = {
        name: STAGES[name].paths(Cell("gpt2", "towns", f"0-{LAST}"), results)["output"]
        for name in ("prompts", "states", "lens", "stages", "attribution", "tuned")
    }
    (results / "models").mkdir()
    (results / "models" / "gpt2").symlink_to(model.description.parent)
    rows = prompt_rows()
    tables.write("prompts", rows, paths["prompts"])
    inputs = {"model": model.description, "readout": model.readout, "prompts": paths["prompts"]}
    run_stage("states", **inputs, batch_tokens=512, output=paths["states"])
    rewrite(paths["states"], rotated)
    # Every other prompt is answered correctly: its answer is what the model says.
    readout, states = Readout.load(model.readout), Tensors(paths["states"])
    said = readout.logits(readout.normed(states[f"resid_post.{LAST:02d}"])).argmax(-1).tolist()
    for row, token in zip(rows, said):
        row["answer_tokens"] = [token] if row["prompt_id"] % 2 else row["answer_tokens"]
    tables.write("prompts", rows, paths["prompts"])
    block = {"states": paths["states"], "first": 0, "last": LAST}
    run_stage("lens", **inputs, **block, output=paths["lens"])
    run_stage("stages", lens=paths["lens"], output=paths["stages"])
    run_stage("attribution", **inputs, states=paths["states"], output=paths["attribution"])
    arguments = inputs | block | {"lens": paths["lens"], "seed": 0, "tasks": ["towns"]}
    run_stage("tuned", **arguments, output=paths["tuned"])
    return results, arguments, paths


def prompt_rows(count=PAIRS):
    """Rows of table prompts: random tokens in two sets, 2:1:2; some answers come again."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt_set in CAPTURED:
        for i in range(count):
            ids = torch.randint(2, tiny.VOCABULARY, (6,), generator=generator).tolist()
            found.append(
                {
                    "model": "gpt2", "task": "towns", "title": "Towns", "kind": "one-to-one",
                    "prompt_set": prompt_set, "prompt_id": i, "template": 0, "group": None,
                    "argument": f"x{i}", "answer": f"y{i}", "demonstrations": "", "shown_tokens": [], "text": "...",
                    "answer_in_prompt": False, "out_of_domain": False, "dropped": None,
                    "split": ("train", "dev", "test", "train", "test")[i % 5], "token_ids": ids,
                    "argument_token": 2 + i, "answer_tokens": [120 + i % 90],
                    "argument_length": 1, "answer_length": 1, "first_token_letters": 3,
                    "stratum": "argument one, answer one",
                }
            )  # fmt: skip
    return found


def rewrite(path, change):
    """Change the tensors of a states file; what they belong to stays noted."""
    file = Tensors(path)
    write_tensors(change({name: file[name].clone() for name in file}), path, file.metadata)


def rotated(tensors):
    end = tensors[f"resid_post.{LAST:02d}"]
    return tensors | {"resid_post.00": end @ rotation(end.shape[1]).T}


def rows_of(path):
    return read_table(path).to_pylist()


def test_rows(made):
    results, arguments, paths = made
    rows = kept_rows(paths["prompts"], CAPTURED)
    found = rows_of(paths["tuned"])
    train = [row for row in rows if row["split"] == "train"]
    pairs = {row["prompt_id"] for row in train}
    held = {row["prompt_id"] for row in found if row["part"] == "held-out"}
    assert len(held) == len(pairs) // 5 and held < pairs
    splits = {row["prompt_id"]: row["split"] for row in rows}
    shown = [row for row in found if row["part"] != "held-out"]
    assert {row["prompt_set"] for row in shown} == {"abstractive"}
    assert all(row["part"] == splits[row["prompt_id"]] for row in shown)
    assert {row["part"] for row in shown} == {"dev", "test"}
    # Nothing that is reported has an argument or a first token of an answer of the train prompts, or
    # of what stands in them.
    named = {argument for row in train for argument in row["demonstrations"].split("|")}
    train += [row for row in rows if row["argument"] in named]
    seen = {token for row in train for token in row["answer_tokens"] + row["shown_tokens"]}
    asked = [row for row in rows if row["split"] != "train" and row["prompt_set"] == "abstractive"]
    clear = {row["prompt_id"] for row in asked if seen.isdisjoint(row["answer_tokens"])}
    assert {row["prompt_id"] for row in shown} == clear and len(clear) < len(asked)
    # Plain and translated alike: by the distributions themselves, at every layer.
    readout, states = Readout.load(arguments["readout"]), Tensors(paths["states"])
    place = {(row["prompt_set"], row["prompt_id"]): i for i, row in enumerate(rows)}
    end, *lens = (
        readout.logits(readout.normed(states[f"resid_post.{layer:02d}"])).log_softmax(-1)
        for layer in (LAST, *range(LAST + 1))
    )
    for row in found:
        i = place[row["prompt_set"], row["prompt_id"]]
        kl = (end[i].exp() * (end[i] - lens[row["layer"]][i])).sum().item()
        assert row["plain_kl"] == pytest.approx(kl, abs=2e-3)


def test_a_rotated_layer_is_read_and_the_last_one_is_left_alone(made):
    _, _, paths = made
    found = rows_of(paths["tuned"])
    held = [row for row in found if row["part"] == "held-out"]
    first, last = ([row for row in held if row["layer"] == layer] for layer in (0, LAST))
    plain, tuned = (sum(row[key] for row in first) / len(first) for key in ("plain_kl", "kl"))
    assert plain > 0.5 and tuned < 0.1 * plain
    assert {(row["ridge"], row["steps"]) for row in last} == {(None, None)}
    assert all(row["kl"] == row["plain_kl"] == pytest.approx(0, abs=1e-3) for row in last)
    ranks = {
        (row["prompt_set"], row["prompt_id"]): (row["argument_rank"], row["answer_rank"])
        for row in rows_of(paths["lens"])
        if row["layer"] == LAST and row["site"] == "resid_post"
    }
    for row in found:
        if row["layer"] == LAST:
            key = row["prompt_set"], row["prompt_id"]
            assert ranks[key] == (row["argument_rank"], row["answer_rank"])


def test_train_prompts_alone_teach(made, tmp_path):
    """Other dev and test prompts' states: the same translators, and the same again without."""
    _, arguments, paths = made
    rows = kept_rows(paths["prompts"], CAPTURED)
    other = torch.tensor([row["split"] != "train" for row in rows])
    again, moved = tmp_path / "again.parquet", tmp_path / "moved.parquet"
    run_stage("tuned", **arguments, output=again)
    assert rows_of(again) == rows_of(paths["tuned"])
    states, lens = tmp_path / "states.safetensors", tmp_path / "lens.parquet"
    states.write_bytes(open(paths["states"], "rb").read())

    def change(tensors):
        for tensor in tensors.values():
            tensor[other] = tensor[other].flip(0) + 1
        return tensors

    rewrite(states, change)
    changed = arguments | {"states": states}
    lens_of = {key: changed[key] for key in ("model", "readout", "prompts", "first", "last")}
    run_stage("lens", **lens_of, states=states, output=lens)
    run_stage("tuned", **changed | {"lens": lens}, output=moved)
    before, after = rows_of(again), rows_of(moved)
    assert before != after
    keep = [[row for row in some if row["part"] == "held-out"] for some in (before, after)]
    assert keep[0] == keep[1] and keep[0]


def test_what_train_prompts_hold_is_in_no_reported_one():
    """Their arguments, answers and demonstrations, of every task; and nothing else is left out."""
    draw, told = random.Random(0), 0
    for _ in range(60):
        rows = [
            {
                "task": task,
                "prompt_id": number,  # the same in both tasks
                "prompt_set": "abstractive",
                "out_of_domain": draw.random() < 0.1,
                "split": draw.choice(["train", "train", "dev", "test"]),
                "argument": f"{number % 25}",
                "answer_tokens": draw.sample(range(90), draw.randint(1, 2)),
                "demonstrations": f"{draw.randrange(30)}",
            }
            for task in "ab"
            for number in range(30)
        ]
        for row in rows:
            named = [r for r in rows if r["task"] == row["task"]]
            named = [r for r in named if r["argument"] == row["demonstrations"]]
            row["shown_tokens"] = [token for r in named for token in r["answer_tokens"]]
        train = [row for row in rows if row["split"] == "train"]
        own = {(row["task"], row["demonstrations"]) for row in train}
        known = train + [row for row in rows if (row["task"], row["argument"]) in own]
        arguments = {row["argument"] for row in known}
        tokens = {token for row in known for token in row["answer_tokens"]}
        fair = [
            i
            for i, row in enumerate(rows)
            if row["split"] != "train"
            and not row["out_of_domain"]
            and row["argument"] not in arguments
            and tokens.isdisjoint(row["answer_tokens"])
        ]
        assert deal(rows, 0)[2] == fair
        told += len(known) - len(train)
    assert told > 100


def test_what_is_held_out_is_drawn_by_the_seed():
    rows = prompt_rows()
    (seen, held, shown), other = deal(rows, 0), deal(rows, 1)
    assert deal(rows, 0) == (seen, held, shown) and held != other[1]
    assert sorted(seen + held) == sorted(other[0] + other[1]) and shown == other[2]


def test_too_few_train_pairs(made, refused, tmp_path):
    _, arguments, _ = made
    prompts, states = tmp_path / "prompts.parquet", tmp_path / "states.safetensors"
    tables.write("prompts", prompt_rows(20), prompts)
    about = {"model": arguments["model"], "readout": arguments["readout"], "prompts": prompts}
    run_stage("states", **about, batch_tokens=512, output=states)
    line = refused(
        command("tuned", **arguments | about | {"states": states}, output=tmp_path / "x")
    )
    assert "only 8 train pairs" in line and "name more tasks there" in line


def test_tables(made, tmp_path):
    """The summary's curves are means over the same prompts for both lenses; KL by layer says gains."""
    results, _, paths = made
    settings = {
        "grid": {"gpt2": [LAST + 1, LAST + 1]},
        "tasks": {"all": ["towns"], "injected": [], "ablated": [], "swapped": []},
        "resamples": 100,
        "top_k": 1,
    }
    settings["tasks"]["tuned"] = ["towns"]
    database = tmp_path / "summary.duckdb"
    where = {"results": results, "database": database, "tables": tmp_path / "tables"}
    assert main([str(word) for word in command("summary", settings=settings, **where)]) == 0
    with duckdb.connect(str(database), read_only=True) as connection:
        layers = connection.execute(
            "SELECT layer, held_out_plain, held_out_tuned, gains, ridge IS NULL FROM tuned_kl"
        ).fetchall()
        runs = "SELECT task, layers FROM runs WHERE stage = 'tuned'"
        assert connection.execute(runs).fetchall() == [(None, f"0-{LAST}")]
        both = connection.execute("SELECT count(*) FROM tuned_crossovers").fetchone()
        curves = connection.execute(
            """SELECT lens, target, layer, prompts, reciprocal_rank FROM tuned_curves
               WHERE layer IN (0, ?)""",
            [LAST],
        ).fetchall()
    found = [row for row in rows_of(paths["tuned"]) if row["part"] == "held-out"]
    assert [row[0] for row in layers] == list(range(LAST + 1))
    for layer, plain, tuned, gains, identity in layers:
        mine = [row for row in found if row["layer"] == layer]
        assert plain == pytest.approx(sum(row["plain_kl"] for row in mine) / len(mine))
        assert tuned == pytest.approx(sum(row["kl"] for row in mine) / len(mine))
        assert gains == (not identity) and (tuned < plain if gains else tuned == plain)
    assert layers[0][3] and not layers[LAST][3]
    right = {
        row["prompt_id"]
        for row in rows_of(paths["stages"])
        if row["pattern"] != "incorrect" and row["prompt_set"] == "abstractive"
    } & {row["prompt_id"] for row in rows_of(paths["tuned"]) if row["part"] != "held-out"}
    assert right and both == (2,) and len(curves) == 8
    plain = {
        (row["prompt_id"], row["layer"]): row
        for row in rows_of(paths["lens"])
        if row["prompt_set"] == "abstractive" and row["site"] == "resid_post"
    }
    translated = {
        (row["prompt_id"], row["layer"]): row
        for row in rows_of(paths["tuned"])
        if row["prompt_set"] == "abstractive"
    }
    for lens, target, layer, prompts, mean in curves:
        of = {"plain": plain, "tuned": translated}[lens]
        ranks = [of[number, layer][f"{target}_rank"] for number in right]
        assert prompts == len(right)
        assert mean == pytest.approx(sum(1 / (1 + rank) for rank in ranks) / len(ranks), rel=1e-6)


def test_off_by_default():
    sweep = Sweep(checked(SMALL))
    assert sweep.cells(STAGES["tuned"]) == []
    config = SMALL | {"tuned": {"tasks": None}}
    sweep = Sweep(checked(config))
    cells = sweep.cells(STAGES["tuned"])
    assert cells and {cell.task for cell in cells} == {""}
    read = sweep.inputs(STAGES["tuned"], cells[0])
    assert len(read["prompts"]) == len(read["states"]) == len(config["tasks"])
    assert sweep.settings(STAGES["tuned"], cells[0])["tasks"] == list(config["tasks"])
