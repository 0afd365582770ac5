"""Stage stages: each definition of sql/stages.sql on lens tables by hand, column by column.

A prompt is written as the top token of every layer at each site: "A" the argument, "B" the
answer, "." neither. `mid` and `post` are the mid-block state and the block's output.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import command, main
from vecsweep.stages.stages import stages_of

COLUMNS = ["pattern", "argument_first", "argument_last", "function_layer", "function_site"]
COLUMNS.append("saturation_layers")


def lens(sites, prompt_id=0, prompt_set="abstractive", model="tiny", task="towns"):
    """Rows of stage lens from the top tokens by site; ranks of what is not on top are 3 and 7."""
    rows = [
        {
            "model": model,
            "task": task,
            "prompt_set": prompt_set,
            "prompt_id": prompt_id,
            "layer": layer,
            "site": site,
            "argument_rank": 0 if top in "A=" else 3,
            "answer_rank": 0 if top in "B=" else 7,
        }
        for site, tops in sites.items()
        for layer, top in enumerate(tops)
    ]
    return rows


def table(rows):
    result = pa.Table.from_pylist(rows)
    small = {"layer": pa.int16(), "prompt_id": pa.int32()}
    small |= {"argument_rank": pa.int32(), "answer_rank": pa.int32()}
    return result.cast(pa.schema([(f.name, small.get(f.name, f.type)) for f in result.schema]))


def stages(rows):
    return stages_of(table(rows)).to_pylist()


def sequential(mid, post):
    return {"resid_mid": mid, "resid_post": post}


def parallel(attention, ffn, post):
    return {"attention_alone": attention, "ffn_alone": ffn, "resid_post": post}


CASES = {
    # The X of the paper: the argument forms at 1 and 2, layer 3's FFN flips it to the answer.
    "argument-function": (sequential(".AAABB", ".AABBB"), ["argument-function", 1, 3, 3, "ffn", 3]),
    # The mid-block state of layer 3 already says the answer: its attention did it.
    "attention": (sequential(".AABBB", ".AABBB"), ["argument-function", 1, 2, 3, "attention", 3]),
    # The mid-block state flips to something else first; the answer comes by the FFN.
    "ffn-after-detour": (sequential(".AA.BB", ".AABBB"), ["argument-function", 1, 2, 3, "ffn", 3]),
    # Attention shows the answer, the FFN takes it away, the next FFN brings it back.
    "taken-away": (sequential(".AB.BB", ".AA.BB"), ["argument-function", 1, 1, 4, "attention", 2]),
    "direct": (sequential("...BB", "..BBB"), ["direct", None, None, 2, "ffn", 3]),
    "incorrect": (sequential(".....", "....."), ["incorrect", None, None, None, None, None]),
    # The argument forms and nothing follows: the paper's commonest error.
    "no-effect": (sequential(".AAAA", ".AAAA"), ["incorrect", 1, 4, None, None, None]),
    # Right on the way, wrong at the end.
    "lost": (sequential(".ABBB", ".ABB."), ["incorrect", 1, 1, None, None, None]),
    "lost-to-the-argument": (
        sequential(".BBBA", ".BBBA"),
        ["incorrect", None, None, None, None, None],
    ),
    # The answer comes and goes: function application is where it comes for good, and argument
    # formation must be before it FIRST comes.
    "comes-and-goes": (sequential(".AB.AB", ".AB.BB"), ["argument-function", 1, 1, 4, "ffn", 2]),
    "argument-between": (sequential(".BAB.", ".BABB"), ["direct", None, None, 3, "attention", 2]),
    "argument-before-and-between": (
        sequential("ABAAB", "ABABB"),
        ["argument-function", 0, 0, 3, "ffn", 2],
    ),
    # Formation may pause: first and last layer, not a run without gaps.
    "gap": (sequential("A.A.BB", "A.A.BB"), ["argument-function", 0, 2, 4, "attention", 2]),
    # The argument between attention and FFN alone is argument formation; not in the paper's reading.
    "argument-at-mid-only": (
        sequential(".A.B", "..BB"),
        ["argument-function", 1, 1, 2, "ffn", 2],
    ),
    # The answer between them ends argument formation; not in the paper's reading.
    "answer-at-mid-before": (sequential(".BA.B", "..ABB"), ["direct", None, None, 3, "ffn", 2]),
    "all-layers-by-ffn": (sequential(".BBB", "BBBB"), ["direct", None, None, 0, "ffn", 4]),
    "all-layers-by-attention": (
        sequential("BBBB", "BBBB"),
        ["direct", None, None, 0, "attention", 4],
    ),
    "argument-at-0": (sequential("AAB", "ABB"), ["argument-function", 0, 1, 1, "ffn", 2]),
    "last-layer": (sequential("AAA", "AAB"), ["argument-function", 0, 2, 2, "ffn", 1]),
    "one-layer": (sequential("A", "B"), ["argument-function", 0, 0, 0, "ffn", 1]),
    # A copying twin's argument is its answer: both are on top from the same layer on, which is
    # not argument formation.
    "copy": (sequential("..==", "..=="), ["direct", None, None, 2, "attention", 2]),
    # Parallel blocks: the update that makes the answer the top when added alone.
    "parallel-ffn": (parallel(".AA.B", ".AABB", ".AABB"), ["argument-function", 1, 2, 3, "ffn", 2]),
    "parallel-attention": (
        parallel(".AABB", ".AA.B", ".AABB"),
        ["argument-function", 1, 2, 3, "attention", 2],
    ),
    "parallel-both": (
        parallel(".AABB", ".AABB", ".AABB"),
        ["argument-function", 1, 2, 3, "both", 2],
    ),
    "parallel-joint": (
        parallel(".AAAB", ".AA.B", ".AABB"),
        ["argument-function", 1, 2, 3, "joint", 2],
    ),
    "parallel-at-0": (parallel("..", "B.", "BB"), ["direct", None, None, 0, "ffn", 2]),
    "parallel-incorrect": (parallel("BB", "BB", ".A"), ["incorrect", 1, 1, None, None, None]),
    # The FFN alone would do it at 1, where its sum with attention does not; at 2 something else does.
    "parallel-early": (
        parallel("A...", "ABBB", "A.BB"),
        ["argument-function", 0, 0, 2, "ffn", 2],
    ),
    # Flipped at 1, lost, regained by an FFN from something else.
    "flipped-before": (sequential(".A..B", ".B.BB"), ["argument-function", 1, 1, 3, "ffn", 2]),
    # After the answer is there for good, attention brings the argument back and the FFN mends it.
    "mended-after": (sequential(".ABA", ".BBB"), ["argument-function", 1, 1, 1, "ffn", 3]),
    "flip-by-attention-is-none": (
        sequential("AABB", "AABB"),
        ["argument-function", 0, 1, 2, "attention", 2],
    ),
}
# Layer of the flip, where there is one.
FLIPS = {
    "argument-function": 3,
    "comes-and-goes": 4,
    "argument-before-and-between": 3,
    "argument-at-0": 1,
    "last-layer": 2,
    "one-layer": 0,
    "parallel-ffn": 3,
    "parallel-both": 3,
    "flipped-before": 1,
    "mended-after": 1,
}
# The pattern as the paper reads it, where it differs.
POST = {
    "argument-at-mid-only": "direct",
    "answer-at-mid-before": "argument-function",
    "one-layer": "direct",
    "flipped-before": "direct",
    "mended-after": "direct",
}


@pytest.mark.parametrize("name", CASES)
def test_definitions(name):
    sites, expected = CASES[name]
    (row,) = stages(lens(sites))
    assert [row[column] for column in COLUMNS] == expected
    assert row["flip_layer"] == FLIPS.get(name)
    assert row["pattern_post"] == POST.get(name, expected[0])
    keys = {"model": "tiny", "task": "towns", "prompt_set": "abstractive", "prompt_id": 0}
    assert {key: row[key] for key in keys} == keys
    assert set(row) == {*keys, *COLUMNS, "flip_layer", "pattern_post"}


def test_function_layer_counts_to_the_last_layer_that_is_there():
    # Twelve layers: a text order of layers (0, 1, 10, 11, 2, ...) would go wrong.
    post = "." * 3 + "A" * 6 + "B" * 3
    (row,) = stages(lens(sequential(post[1:] + "B", post)))
    assert row["flip_layer"] is None
    assert [row[c] for c in COLUMNS] == ["argument-function", 2, 7, 9, "attention", 3]


def test_prompts_do_not_mix():
    # The same prompt_id in two sets, two tasks and two models is four prompts.
    rows, expected = [], {}
    for number, (sites, values) in enumerate(CASES.values()):
        for key in ({}, {"prompt_set": "extractive"}, {"task": "verbs"}, {"model": "other"}):
            shown = sites if not key else CASES["no-effect"][0]
            rows += lens(shown, number, **key)
            label = {"model": "tiny", "task": "towns", "prompt_set": "abstractive"} | key
            expected[*label.values(), number] = values if not key else CASES["no-effect"][1]
    found = stages(rows[::-1])  # whatever the order of the rows
    values = {tuple(row.values())[:4]: [row[column] for column in COLUMNS] for row in found}
    assert values == expected
    order = [tuple(row.values())[:4] for row in found]
    assert order == sorted(order)


def test_stage_reads_all_layer_blocks(tmp_path):
    sites, expected = CASES["argument-function"]
    rows = lens(sites)
    files = []
    for first, last in ((0, 1), (2, 3), (4, 5)):
        block = [row | {"top_token": [1]} for row in rows if first <= row["layer"] <= last]
        files.append(tmp_path / f"{first}-{last}.parquet")
        pq.write_table(table(block), files[-1])
    output = tmp_path / "stages.parquet"
    assert main(command("stages", lens=files[::-1], output=output)) == 0
    (row,) = pq.read_table(output).to_pylist()
    assert [row[column] for column in COLUMNS] == expected
    assert pq.read_table(output).schema.metadata[b"step_version"].isdigit()


def test_damaged_block_is_named(tmp_path, refused):
    whole, cut = tmp_path / "0-1.parquet", tmp_path / "2-3.parquet"
    pq.write_table(table(lens(sequential("AA", "AB"))), whole)
    cut.write_bytes(whole.read_bytes()[:-20])
    line = refused(command("stages", lens=[whole, cut], output=tmp_path / "x.parquet"))
    assert f"{cut} is damaged" in line and "delete it and run again" in line
    assert not (tmp_path / "x.parquet").exists()
