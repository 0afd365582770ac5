"""The tables of o-vectors and ablations against pandas on the stages' own files, computed anew."""

import shutil

import duckdb
import numpy as np
import pandas as pd
import pytest

from test_figures import CHOSEN, LAYERS, SEARCHED, SOURCES, make_database

CELL = ["model", "ovector_task", "task", "domain"]
SHARES = ["argument_before", "top_1_before", "top_1", "top_5", "top_10", "no_effect"]
SHARES += ["argument_stays", "other_answer", "other"]
MEANS = ["reciprocal_rank_before", "reciprocal_rank_after", "rise", "among_before", "among_after"]
MEANS += ["own_lift", "others_lift"]
RANKS = MEANS[:2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(connection, raw frames by stage) of a made-up sweep of 2 models x 7 tasks."""
    folder = tmp_path_factory.mktemp("tables")
    database = make_database(folder, 2, 7)
    raw = {
        stage: pd.concat([pd.read_parquet(path) for path in folder.glob(f"{stage}-*.parquet")])
        for stage in ("interventions", "prompts", "stages", "ablations")
    }
    with duckdb.connect(str(database), read_only=True) as connection:
        yield connection, raw


def judged(raw):
    """The wide outcomes with reciprocal ranks, shares and error classes."""
    novel = raw["prompts"][raw["prompts"].prompt_set == "novel"]
    answers = {
        cell: {token for tokens in rows.answer_tokens.dropna() for token in tokens}
        for cell, rows in novel.groupby(["model", "task"])
    }
    keys = ["model", "task", "prompt_id"]
    columns = ["argument_token", "argument_length", "answer_length", "first_token_letters"]
    found = raw["interventions"].merge(novel[keys + columns], on=keys, validate="many_to_one")
    for when in ("before", "after"):
        found[f"reciprocal_rank_{when}"] = 1 / (1 + found[f"answer_rank_{when}"])
    found["rise"] = found.reciprocal_rank_after - found.reciprocal_rank_before
    for when in ("before", "after"):
        found[f"among_{when}"] = 1 / (1 + found[f"place_{when}"])
    rank, top = found.answer_rank_after, found.top_after
    found["argument_before"] = found.top_before == found.argument_token
    found["top_1_before"] = found.answer_rank_before == 0
    found["top_1"], found["top_5"], found["top_10"] = rank == 0, rank < 5, rank < 10
    found["no_effect"] = np.where(found.argument_before, top == found.argument_token, np.nan)
    wrong = rank > 0
    found["argument_stays"] = wrong & (top == found.argument_token)
    same_type = [
        token in answers[model, task] | answers[model, own]
        for token, model, task, own in zip(top, found.model, found.task, found.ovector_task)
    ]
    found["other_answer"] = wrong & ~found.argument_stays & np.array(same_type)
    found["other"] = wrong & ~found.argument_stays & ~found.other_answer
    return found.astype(dict.fromkeys(SHARES, float))


def same(table, expected, keys, values):
    """Both frames have the same keys, once each, and equal values."""
    assert len(table) == len(expected) and not table.duplicated(keys).any()
    both = table.merge(expected, on=keys, suffixes=("", "_expected"), validate="one_to_one")
    assert len(both) == len(table)
    for name in values:
        np.testing.assert_allclose(
            both[name], both[f"{name}_expected"], rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_error_classes_add_up(sweep):
    connection, raw = sweep
    query = """SELECT count(*), min(total), max(total), count(DISTINCT total) FROM (
        SELECT top_1 + argument_stays + other_answer + other AS total FROM outcomes)"""
    count, low, high, _ = connection.execute(query).fetchone()
    assert (count, low, high) == (len(raw["interventions"]), 1, 1)
    sums = "top_1 + argument_stays + other_answer + other"
    for name in ("effects", "methods", "ovector_results"):
        found = connection.execute(f"SELECT {sums} FROM {name}").df()
        np.testing.assert_allclose(found.iloc[:, 0], 1)


SETTING = ["source_layer", "start_layer", "end_layer", "mode", "scale"]


def test_chosen(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM chosen").df()
    test = raw["interventions"].query("split == 'test' and method in @SEARCHED")
    test = test.assign(task=test.ovector_task)
    keys = ["model", "task", "method"]
    expected = test.groupby([*keys, *SETTING], dropna=False).size().reset_index()
    same(table, expected, keys, ["start_layer", "end_layer", "scale"])
    assert table.donor.notna().equals(table.method == "o-vector")
    assert table.source_layer.isna().equals(table.method == "zero")


def expected_effects(raw):
    """Means on test, of a prompt's several vectors first."""
    rows = judged(raw).query("split == 'test'")
    keys = [*CELL, "method"]
    prompts = rows.groupby([*keys, "prompt_id"])[[*MEANS, *SHARES]].mean()
    expected = prompts.groupby(keys).mean()
    vectors = rows.groupby([*keys, "prompt_id"]).size().groupby(keys).max()
    sizes = {"prompts": prompts.groupby(keys).size(), "vectors": vectors}
    return expected.assign(**sizes).reset_index()


def test_effects(sweep):
    connection, raw = sweep
    table, expected = connection.execute("SELECT * FROM effects").df(), expected_effects(raw)
    same(table, expected, [*CELL, "method"], [*MEANS, *SHARES, "prompts", "vectors"])
    for name in (*MEANS, *SHARES):
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all()
        assert (table[name] <= table[f"{name}_high"] + 1e-9).all()
        # No interval has zero width, whatever the values.
        assert (table[f"{name}_low"] < table[f"{name}_high"]).all(), name
    # Of two answers, one of them the own: (1 + 1/2) / 2.
    np.testing.assert_allclose(table.among_chance, 0.75)
    # A bootstrap interval is about 1.96 standard errors to each side where prompts are many.
    row = table.query("method == 'o-vector' and domain == 'in'").iloc[0]
    some = judged(raw).query("split == 'test' and method == 'o-vector' and domain == 'in'")
    some = some[(some.model == row.model) & (some.ovector_task == row.ovector_task)]
    some = some.reciprocal_rank_after
    width = row.reciprocal_rank_after_high - row.reciprocal_rank_after_low
    assert width == pytest.approx(2 * 1.96 * some.std(ddof=0) / len(some) ** 0.5, rel=0.35)


def test_differences_are_paired_with_the_o_vector(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM effects").df()
    rows = judged(raw).query("split == 'test'")
    prompts = rows.groupby([*CELL, "method", "prompt_id"]).reciprocal_rank_after.mean()
    for row in table.itertuples():
        cell = (row.model, row.ovector_task, row.task, row.domain)
        each = prompts[(*cell, row.method)] - prompts[(*cell, "o-vector")]
        assert row.difference == pytest.approx(each.mean())
        assert row.difference_low <= row.difference + 1e-9
        if each.any() and len(each) > 20:
            # The signs' test is about the normal one.
            z = abs(each.mean()) / (each.std(ddof=0) / len(each) ** 0.5)
            assert (row.p < 0.05) == (z > 1.96) or 1.5 < z < 2.5
    own = table[table.method == "o-vector"]
    assert (own.difference == 0).all() and (own.p == 1).all()


def test_holm(sweep):
    connection, _ = sweep
    table = connection.execute("SELECT * FROM corrected_effects").df()
    whole = ["o-vector", "neurons_all", "directions_all"]
    assert table[table.method.isin(whole)].p_holm.isna().all()
    for _, some in table[~table.method.isin(whole)].groupby(["model", "domain"]):
        largest = 0.0
        ordered = some.sort_values(["p", "ovector_task", "task", "method"])
        for place, (p, found) in enumerate(zip(ordered.p, ordered.p_holm)):
            largest = max(largest, min(1, p * (len(some) - place)))
            assert found == pytest.approx(largest)


def test_transfer(sweep):
    connection, _ = sweep
    for row in connection.execute("SELECT * FROM effects").df().itertuples():
        if row.prompts < 20:
            assert row.transfer == "few"
        elif row.rise_low <= 0:
            assert row.transfer == "none"
        else:
            above = row.among_after_low > row.among_chance
            assert row.transfer == ("argument" if above else "class")


def test_methods(sweep):
    connection, raw = sweep
    expected = expected_effects(raw)
    lows = connection.execute("SELECT * FROM effects WHERE method = 'o-vector'").df()
    rises = {tuple(row[key] for key in CELL): row.rise for _, row in lows.iterrows()}
    sure = {tuple(row[key] for key in CELL) for _, row in lows.iterrows() if row.rise_low > 0}
    cells = [tuple(row) for row in expected[CELL].itertuples(index=False)]
    expected["share_of_lift"] = [
        rise / rises[cell] if cell in sure else np.nan for rise, cell in zip(expected.rise, cells)
    ]
    expected = expected.rename(columns={"task": "prompts_of", "ovector_task": "task"})
    table = connection.execute("SELECT * FROM methods").df()
    keys = ["model", "task", "prompts_of", "domain", "method"]
    same(table, expected, keys, [*RANKS, "top_1", "no_effect", "prompts", "share_of_lift"])
    parts = {f"{basis}_{k}" for basis in ("neurons", "directions") for k in (1, 10, 100, "all")}
    assert parts <= set(table.method) and {*SEARCHED, "donor"} <= set(table.method)
    # As many settings for all, but for those that have fewer: zero has no source layer.
    tried = table.groupby("method").settings.agg(["min", "max"])
    for method in SEARCHED:
        settings = LAYERS * (1 if method == "zero" else len(SOURCES))
        assert tuple(tried.loc[method]) == (settings, settings)
    assert tried.drop(list(SEARCHED)).isna().all(axis=None)


def test_ovector_results(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM ovector_results").df()
    every = expected_effects(raw)
    expected = every.query("method == 'o-vector'").drop(columns="task")
    expected = expected.rename(columns={"ovector_task": "task"})
    keys = ["model", "task", "domain"]
    same(table, expected, keys, [*RANKS, *SHARES, "prompts", "rise"])
    # Train prompts that one FFN flipped.
    abstractive = raw["stages"][raw["stages"].prompt_set == "abstractive"]
    keys = ["model", "task", "prompt_set", "prompt_id"]
    rows = abstractive.merge(raw["prompts"][[*keys, "split"]], on=keys)
    rows = rows[rows.flip_layer.notna() & (rows.split == "train")]
    flips = rows.groupby(["model", "task"]).size().to_dict()
    rivals = every[~every.method.isin(["o-vector", "donor", "neurons_all", "directions_all"])]
    for row in table.itertuples():
        assert row.train_flips == flips.get((row.model, row.task), 0) > 0
        same_cell = (rivals.model == row.model) & (rivals.ovector_task == row.task)
        here = rivals[same_cell & (rivals.domain == row.domain)]
        best = here.reciprocal_rank_after.max()
        assert row.strongest_after == pytest.approx(best)
        named = here[here.method == row.strongest].reciprocal_rank_after.item()
        assert named == pytest.approx(best)


def test_search(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM search").df()
    keys = ["model", "task", "method", *SETTING]
    groups = judged(raw).query("split == 'dev'").groupby(keys, dropna=False)
    expected = groups[[*RANKS, "top_1"]].mean().assign(prompts=groups.size()).reset_index()
    same(table, expected, keys, [*RANKS, "top_1", "prompts"])


def test_tokenization(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM tokenization").df()
    rows = judged(raw).query("split == 'test' and method == 'o-vector'")
    rows = rows.assign(
        task=rows.ovector_task, first_token_letters=rows.first_token_letters.clip(upper=6)
    )
    keys = ["model", "task", "domain", "argument_length", "answer_length", "first_token_letters"]
    groups = rows.groupby(keys)
    expected = groups[[*RANKS, "top_1", "no_effect"]].mean().assign(prompts=groups.size())
    same(table, expected.reset_index(), keys, [*RANKS, "top_1", "no_effect", "prompts"])


def test_ablation_accuracy(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM ablation_accuracy").df()
    keys = ["model", "task", "prompt_set", "sublayer", "value", "order", "step"]
    groups = raw["ablations"].groupby(keys)
    expected = groups.agg(accuracy=("correct", "mean"), prompts=("correct", "size")).reset_index()
    same(table, expected, keys, ["accuracy", "prompts"])
    assert table.low.min() >= -1e-12 and table.high.max() <= 1 + 1e-12
    # Wilson's bounds are the shares that lie 1.96 of their own standard errors from the accuracy.
    for name, sign in (("low", -1), ("high", 1)):
        bound = table[name].clip(0, 1)
        error = 1.96 * np.sqrt(bound * (1 - bound) / table.prompts)
        np.testing.assert_allclose(bound - sign * error, table.accuracy, atol=1e-6)


@pytest.mark.parametrize("shares, places", [
    ((0.6, 0.3, 0.05), [1, 2]),
    ((0.3, 0.28, 0.02), [None, None]),
    ((0.02, 0.03, 0.6), [None, None]),
])  # fmt: skip
def test_errors_have_a_place_only_where_they_are_told_apart(sweep, tmp_path, shares, places):
    connection, _ = sweep
    (path,) = connection.execute("SELECT path FROM duckdb_databases() WHERE path != ''").fetchall()
    shutil.copy(path[0], tmp_path / "copy.duckdb")
    with duckdb.connect(str(tmp_path / "copy.duckdb")) as copied:
        names = ("argument_stays", "other_answer", "other")
        said = ", ".join(f"{name} = {share}" for name, share in zip(names, shares))
        copied.execute(f"UPDATE effects SET {said}")
        found = copied.execute(
            "SELECT our_value FROM paper_comparison WHERE quantity LIKE 'place among%'"
            " ORDER BY our_model, quantity"
        ).fetchall()
    assert [place for (place,) in found] == 2 * places


def test_paper_comparison(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM paper_comparison").df()
    numbers = ["quantity", "paper_model", "task", "domain"]
    assert not table.duplicated([*numbers, "our_model"]).any()
    count = table.groupby(numbers).size()
    assert len(count) == 49 and (count == 2).all()  # each number, beside each of our models
    results = expected_effects(raw).query("method == 'o-vector'")
    chosen = connection.execute("SELECT * FROM chosen WHERE method = 'o-vector'").df()
    settings = chosen.set_index(["model", "task"])
    seen = set()
    for row in table.itertuples():
        cell = (row.our_model, row.task)
        here = results[(results.model == cell[0]) & (results.ovector_task == cell[1])]
        here = here[here.domain == row.domain]
        ours = {
            "rank before": lambda: 1 / here.reciprocal_rank_before.item(),
            "rank after": lambda: 1 / here.reciprocal_rank_after.item(),
            "top-1 share": lambda: here.top_1.item(),
            "no-effect share": lambda: here.no_effect.item(),
            "start layer": lambda: settings.start_layer[cell],
            "source layer": lambda: settings.source_layer[cell],
            "end layer": lambda: 11,
        }.get(row.quantity)
        if ours and len(here):
            assert row.our_value == pytest.approx(ours())
            assert row.prompts == here.prompts.item()
            seen.add(row.quantity)
            if row.quantity.startswith("rank"):
                assert row.our_low <= row.our_value <= row.our_high
        elif ours:
            assert pd.isna(row.our_value) and "not in this sweep" in row.note
    assert len(seen) == 7
    values = table.set_index(["quantity", "task", "domain", "our_model"]).our_value.sort_index()
    ablated = raw["ablations"].query("task == 'colored_objects' and step in (0, 2)")
    for name, rows in ablated.groupby(["model", "prompt_set"]):
        accuracy = rows.groupby("step").correct.mean()
        change = values[f"accuracy change, {name[1]}", "colored_objects", "in", name[0]]
        assert change == pytest.approx(accuracy[2] - accuracy[0])
        assert accuracy[0] == 1  # 10 right answers: enough to lose
    errors = results[results.domain == "in"].groupby("model")[
        ["argument_stays", "other_answer", "other"]
    ]
    prompts = results[results.domain == "in"].groupby("model").prompts.sum()
    for model, shares in errors.mean().iterrows():
        order = shares.rank(ascending=False, method="min")
        for name, words in (("argument_stays", "argument stays"), ("other_answer", "other answer")):
            others = shares.drop(name)
            # Outcomes of the same prompts, of which each has one.
            spread = shares[name] + others - (shares[name] - others) ** 2
            apart = (abs(shares[name] - others) > 1.96 * (spread / prompts[model]) ** 0.5).all()
            place = values[f"place among errors: {words}", "all", "in", model]
            assert place == order[name] if apart else pd.isna(place)
    crossing = connection.execute(
        "SELECT depth FROM crossovers WHERE (task, prompt_set, subset) = "
        "('capitals', 'abstractive', 'correct') ORDER BY model"
    ).fetchall()
    found = table.query("quantity == 'depth of the crossover' and task == 'capitals'")
    assert found.sort_values("our_model").our_value.tolist() == [depth for (depth,) in crossing]
    assert values["start layer", "capitals", "in"].tolist() == [CHOSEN, CHOSEN]
    # Neither yes nor no from 11 prompts.
    for name in ("abstractive", "extractive"):
        some = table.query(f"quantity == 'X, {name} prompts' and task == 'capitals'")
        assert some.our_value.isna().all() and some.note.str.contains("too few prompts").all()
    rises = table.query("quantity == 'reciprocal rank rises' and task == 'capitals'")
    assert rises.our_value.tolist() == [1, 1] and (rises.our_low > 0).all()


@pytest.mark.parametrize(
    "n, low, high, said",
    [
        (20, 0.1, 0.4, (1, "decided")),
        (19, 0.1, 0.4, (None, "too few prompts")),
        (50, -0.3, -0.1, (0, "decided")),
        (50, -0.3, 0, (0, "decided")),
        (50, -0.1, 0.1, (None, "undecided: the interval holds both")),
    ],
)
def test_yes_and_no_need_prompts_and_an_interval(sweep, n, low, high, said):
    query = "SELECT yes(?, ?, ?, 0), undecided(?, ?, ?, 0)"
    assert sweep[0].execute(query, [n, low, high] * 2).fetchone() == said


def test_the_caption_names_every_table(sweep):
    from vecsweep.stages.summary import SQL

    caption = (SQL.parent.parent / "report" / "tables.rst").read_text()
    for path in (SQL / "tables").glob("*.sql"):
        assert f"*{path.stem}*:" in caption
