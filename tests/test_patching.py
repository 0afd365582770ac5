"""Stage patching: who is paired, and numbers equal to plain hooks on the whole model."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, normalizers

import planted
import tiny
from test_ablations import write_prompts
from test_edits import plain_run, sublayer_of
from test_swaps import chain, plain_parts, prompt, run_behind
from vecsweep import Problem
from vecsweep.engine import load
from vecsweep.engine.edits import PARTS
from vecsweep.engine.readout import Readout
from vecsweep.stages.patching import paired, patch
from vecsweep.tasks.rows import argument_ends, kept_rows

FAMILIES = ("gpt2", "gptj", "bloom", "gemma3_text", "qwen3")  # gptj: parallel; gemma3_text: windows


def long(number, length=4, **changes):
    return prompt(number, **changes) | {"token_ids": [0] * length}


def test_pairs_are_alike_and_answer_differently():
    rows = [long(i, length=4 + i % 2) for i in range(12)] + [long(20, 9), long(21, 4, tokens=[100])]
    ends = [2 + (i % 4 == 0) for i in range(12)] + [2, 3]
    draws = set()
    for seed in range(6):
        pairs = paired(rows, ends, 40, seed)
        used = [i for pair in pairs for i in pair]
        assert len(used) == len(set(used)) and 12 not in used
        for a, b in pairs:
            assert len(rows[a]["token_ids"]) == len(rows[b]["token_ids"]) and ends[a] == ends[b]
            assert not {*rows[a]["answer_tokens"]} & {*rows[b]["answer_tokens"]}
        assert pairs == paired(rows, ends, 40, seed) and len(paired(rows, ends, 5, seed)) == 2
        draws.add(tuple(pairs))
    assert len(draws) > 2
    assert paired(rows[:1], ends[:1], 40, 0) == [] == paired([], [], 40, 0)


def test_arguments_end_where_their_last_letter_is(tiny_model, tmp_path):
    made = tiny_model("gemma3_text")  # its tokenizer puts a special token first
    rows = kept_rows(write_prompts(made, tmp_path), ("abstractive",))
    decode = tiny.tokenizer(bos=True).decode
    for row, end in zip(rows, argument_ends(made.tokenizer, rows)):
        ids = row["token_ids"]
        said = decode(ids[: len(ids) - end + 1], skip_special_tokens=True)
        assert said.rstrip("?").endswith(row["argument"]) and decode(ids[-end:]).strip()
        assert decode(ids[len(ids) - end + 1 :]).lstrip("?") == "\nA:"
    with pytest.raises(Problem, match="not what made the prompts; delete it"):
        argument_ends(tiny_model("gpt2").tokenizer, rows)
    # A template may ask by another column than the argument.
    other = [row | {"argument": "polandx"} for row in rows]
    with pytest.raises(Problem, match="does not hold its argument 'polandx'.*patching > tasks"):
        argument_ends(made.tokenizer, other)


@pytest.mark.parametrize(
    "template, arguments",
    [
        ("First there was one {}, then there were many", ["man", "car", "many"]),
        ("Q: {}\nA:", ["A", "B", "Q"]),
        ("What comes after {} is", ["s", "i", "is"]),
        ("{} is", ["a is", "is", "b"]),
    ],
)
def test_the_templates_own_words_are_no_mention(template, arguments, tiny_model):
    """Alone they are: what stands behind the argument shows by the other prompts."""
    path = tiny_model("gpt2").tokenizer
    tokenizer = Tokenizer.from_file(str(path))
    shown = template.format("car") + " cars.\n"
    texts = [shown + template.format(argument) for argument in arguments]
    encoded = [tokenizer.encode(text) for text in texts]
    rows = [
        {"text": text, "argument": argument, "token_ids": found.ids}
        for text, argument, found in zip(texts, arguments, encoded)
    ]
    for row, found, end in zip(rows, encoded, argument_ends(path, rows)):
        place = len(shown) + template.index("{}") + len(row["argument"]) - 1
        start, stop = found.offsets[len(found.ids) - end]
        assert start <= place < stop


@pytest.mark.parametrize("argument", ["cafe\u0301", "\u1112\u1161\u11ab"])
@pytest.mark.parametrize("drops", [False, True])
def test_a_last_letter_that_no_token_covers(drops, argument, tiny_model, tmp_path):
    """It is one with the letter before, or dropped: that one's token is meant."""
    form = (
        [normalizers.NFD(), normalizers.Replace(argument[-1], "")] if drops else [normalizers.NFC()]
    )
    tokenizer = Tokenizer.from_file(str(tiny_model("gpt2").tokenizer))
    tokenizer.normalizer = normalizers.Sequence(form)
    tokenizer.save(str(path := tmp_path / "tokenizer.json"))
    text = f"Of {argument} is"
    found = tokenizer.encode(text)
    row = {"task": "t", "text": text, "argument": argument, "token_ids": found.ids}
    (end,) = argument_ends(path, [row])
    start, stop = found.offsets[len(found.ids) - end]
    assert start < 3 + len(argument) and stop > 3
    assert found.offsets[len(found.ids) - end + 1][0] >= 3 + len(argument) - 1
    if drops:
        with pytest.raises(Problem, match="task 't': the tokenizer leaves nothing of the argument"):
            argument_ends(path, [row | {"argument": argument[-1]}])


@torch.inference_mode()
def plain_patched(model, ids, layer, sublayer, place, vector):
    """Logits [vocabulary] of a bare forward with one output replaced at a token from the end."""

    def change(module, args, output):
        whole = output[0] if isinstance(output, tuple) else output
        tokens = whole.reshape(-1, whole.shape[-1]).clone()
        tokens[-place] = vector
        new = tokens.view(whole.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = sublayer_of(model, layer, sublayer).register_forward_hook(change)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_equals_plain_hooks(kind, tiny_model, tmp_path):
    made = tiny_model(kind)
    rows = kept_rows(write_prompts(made, tmp_path), ("abstractive",))
    ends = argument_ends(made.tokenizer, rows)
    pairs = paired(rows, ends, 6, 0)
    assert len(pairs) == 3
    engine, readout = load.engine_of(made.model, 64), Readout.load(made.readout)
    found = patch(engine, readout, rows, ends, pairs)
    layers, number = tiny.layers_of(kind), {row["prompt_id"]: i for i, row in enumerate(rows)}
    keys = {tuple(row[k] for k in ("prompt_id", "layer", "sublayer", "position")) for row in found}
    both = {i for pair in pairs for i in pair}
    assert keys == set(
        itertools.product(
            (rows[i]["prompt_id"] for i in both), range(layers), PARTS, ("last", "argument")
        )
    )
    assert len(keys) == len(found)
    clean = {i: plain_run(made.model, rows[i]["token_ids"])[1] for i in both}
    parts = {
        (i, place): plain_parts(made.model, rows[i]["token_ids"], layers, place)
        for i in both
        for place in {1, ends[i]}
    }
    felt = 0
    for row in found:
        target, source = number[row["prompt_id"]], number[row["other_id"]]
        assert (target, source) in pairs or (source, target) in pairs
        place = 1 if row["position"] == "last" else ends[target]
        vector = parts[source, place][row["sublayer"], row["layer"]]
        where = row["layer"], PARTS[row["sublayer"]], place
        logits = plain_patched(made.model, rows[target]["token_ids"], *where, vector)
        tops = [max(rows[i]["answer_tokens"], key=lambda t: clean[i][t]) for i in (source, target)]
        now, before, end = (
            (logit[tops[0]] - logit[tops[1]]).item()
            for logit in (logits, clean[target], clean[source])
        )
        expected = {"difference": now, "target_difference": before, "source_difference": end}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-3), (name, row)
        if abs(end - before) > 0.1:
            share = (now - before) / (end - before)
            assert row["restored"] == pytest.approx(share, rel=1e-2, abs=1e-2)
            felt += abs(now - before) > 1e-2 and abs(now - end) > 1e-2
    assert felt > len(found) / 6


def patched_means(folder, form, site):
    """(layer, part, position) -> the restored shares of a planted model, by the stages' commands."""
    planted.save(folder / "weights", form, site)
    task = planted.write_task(folder / "tasks")
    results, name = folder / "results", f"{form}-{site}"
    path = chain(results, name, folder / "weights", task, planted.LAYERS, prompts=2)
    written = run_behind("patching", results, name, path, {"prompts": 6, "seed": 0})
    found = {}
    for row in written.to_pylist():
        key = row["layer"], row["sublayer"], row["position"]
        found.setdefault(key, []).append(row["restored"])
    assert {len(values) for values in found.values()} == {6}
    return found


@pytest.mark.parametrize("form, site", [("gpt2", "lookup"), ("gptj", "lookup"), ("bloom", "ffn")])
def test_a_planted_ffn_shows_at_its_layer(form, site, tmp_path):
    found = patched_means(tmp_path, form, site)
    for (layer, part, position), shares in found.items():
        if position == "argument":  # block 0 has read it before anything is written there
            low, high = 0, 0
        elif part == "state" or (part, layer) == ("attention", 0) and site == "ffn":
            low, high = 1, 1  # the argument that was said, and with it the answer
        elif (part, layer) == ("ffn", planted.LAYER) and site == "lookup":
            low, high = 0.5, 0.8  # the fact; the argument that is said still speaks for the other
        elif (part, layer) == ("attention", 0):
            low, high = 0.9, 1.1  # and what is looked up goes by it
        else:
            low, high = 0, 0
        assert all(low - 0.05 <= share <= high + 0.05 for share in shares), (layer, part, shares)


def test_no_pairs_is_a_table_without_rows(tmp_path):
    tiny.save("gpt2", tmp_path / "weights")
    task = tiny.write_task(tmp_path / "tasks", "towns")
    results = tmp_path / "results"
    path = chain(results, "random", tmp_path / "weights", task, 3)
    table = run_behind("patching", results, "random", path, {"prompts": 6, "seed": 0})
    assert table.num_rows == 0 and {"restored", "position"} <= {*table.column_names}
