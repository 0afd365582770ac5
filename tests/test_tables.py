"""The tables of o-vectors and ablations against pandas on the stages' own files, computed anew."""

import duckdb
import numpy as np
import pandas as pd
import pytest

from test_figures import CHOSEN, make_database

CELL = ["model", "ovector_task", "task", "domain"]
SHARES = ["top_1", "top_5", "top_10", "no_effect", "argument_stays", "other_answer", "other"]
RANKS = ["reciprocal_rank_before", "reciprocal_rank_after"]


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
    rank, top = found.answer_rank_after, found.top_after
    found["top_1_before"] = found.answer_rank_before == 0
    found["top_1"], found["top_5"], found["top_10"] = rank == 0, rank < 5, rank < 10
    found["no_effect"] = top == found.top_before
    wrong = rank > 0
    found["argument_stays"] = wrong & (top == found.argument_token)
    same_type = [
        token in answers[model, task] | answers[model, own]
        for token, model, task, own in zip(top, found.model, found.task, found.ovector_task)
    ]
    found["other_answer"] = wrong & ~found.argument_stays & np.array(same_type)
    found["other"] = wrong & ~found.argument_stays & ~found.other_answer
    return found.astype(dict.fromkeys([*SHARES, "top_1_before"], float))


def chosen_settings(raw):
    """{(model, task): (start layer, donor, source layer)} with the best mean on dev on test."""
    once = raw["interventions"][raw["interventions"].control == "difference_once"]
    starts = once.groupby(["model", "ovector_task"]).start_layer.agg(["min", "max"])
    assert (starts["min"] == starts["max"]).all()
    test = raw["interventions"].query("split == 'test' and control == 'o-vector'")
    found = {}
    for cell, start in starts["min"].items():
        rows = test[(test.model == cell[0]) & (test.ovector_task == cell[1])]
        (setting,) = {*zip(rows.donor, rows.source_layer)}
        found[cell] = (start, *setting)
    return found


def same(table, expected, keys, values):
    """Both frames have the same keys, once each, and equal values."""
    assert len(table) == len(expected) and not table.duplicated(keys).any()
    both = table.merge(expected, on=keys, suffixes=("", "_expected"), validate="one_to_one")
    assert len(both) == len(table)
    for name in values:
        np.testing.assert_allclose(both[name], both[f"{name}_expected"], rtol=1e-6, err_msg=name)


def test_error_classes_add_up(sweep):
    connection, raw = sweep
    query = """SELECT count(*), min(total), max(total), count(DISTINCT total) FROM (
        SELECT top_1 + argument_stays + other_answer + other AS total FROM outcomes)"""
    count, low, high, _ = connection.execute(query).fetchone()
    assert (count, low, high) == (len(raw["interventions"]), 1, 1)
    sums = "top_1 + argument_stays + other_answer + other"
    for name in ("effects", "controls", "ovector_results"):
        found = connection.execute(f"SELECT {sums} FROM {name}").df()
        np.testing.assert_allclose(found.iloc[:, 0], 1)


def test_chosen(sweep):
    connection, raw = sweep
    rows = connection.execute("SELECT * FROM chosen").df()
    found = {(r.model, r.task): (r.start_layer, r.donor, r.source_layer) for r in rows.itertuples()}
    assert len(found) == len(rows) and found == chosen_settings(raw)


def expected_effects(raw):
    """Means on test: repeats of a prompt first, for other donors over the donors."""
    rows = judged(raw).query("split == 'test'")
    unit = rows.prompt_id.where(rows.control != "donor", rows.donor).rename("unit")
    keys = [*CELL, "control", "start_layer", "mode"]
    units = rows.groupby([*keys, unit])[[*RANKS, *SHARES, "top_1_before"]].mean()
    expected = units.groupby(keys).mean()
    return expected.assign(units=units.groupby(keys).size()).reset_index()


def test_effects(sweep):
    connection, raw = sweep
    table, expected = connection.execute("SELECT * FROM effects").df(), expected_effects(raw)
    keys, values = [*CELL, "control", "start_layer", "mode"], [*RANKS, *SHARES]
    same(table, expected, keys, [*values, "top_1_before", "units"])
    for name in values:
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all()
        assert (table[name] <= table[f"{name}_high"] + 1e-9).all()
    # A bootstrap interval is about 1.96 standard errors to each side where prompts are many.
    row = table.query("control == 'o-vector' and domain == 'in'").iloc[0]
    some = judged(raw).query("split == 'test' and control == 'o-vector' and domain == 'in'")
    some = some[(some.model == row.model) & (some.ovector_task == row.ovector_task)]
    some = some[some.start_layer == row.start_layer].reciprocal_rank_after
    width = row.reciprocal_rank_after_high - row.reciprocal_rank_after_low
    assert width == pytest.approx(2 * 1.96 * some.std(ddof=0) / len(some) ** 0.5, rel=0.35)


def at_chosen(rows, raw):
    settings = chosen_settings(raw)
    start = [settings[cell][0] for cell in zip(rows.model, rows.ovector_task)]
    return rows[rows.start_layer == start]


def test_controls(sweep):
    connection, raw = sweep
    expected = at_chosen(expected_effects(raw), raw)
    lift = expected.reciprocal_rank_after - expected.reciprocal_rank_before
    keys = ["model", "ovector_task", "domain"]
    whole = expected.assign(whole=lift)[expected.control == "o-vector"][[*keys, "whole"]]
    expected = expected.assign(lift=lift).merge(whole, on=keys)
    expected["share_of_lift"] = expected.lift / expected.whole
    expected = expected.drop(columns="task").rename(columns={"ovector_task": "task"})
    table = connection.execute("SELECT * FROM controls").df()
    keys = ["model", "task", "domain", "control"]
    same(table, expected, keys, [*RANKS, *SHARES, "units", "share_of_lift"])
    parts = {f"{basis}_{k}" for basis in ("neurons", "directions") for k in (1, 10, 100, "all")}
    assert parts <= set(table.control) and {"mean", "donor", "zero"} <= set(table.control)


def test_ovector_results(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM ovector_results").df()
    expected = at_chosen(expected_effects(raw), raw).query("control == 'o-vector'")
    expected = expected.drop(columns="task")
    expected = expected.rename(columns={"ovector_task": "task", "units": "prompts"})
    expected["lift"] = expected.reciprocal_rank_after / expected.reciprocal_rank_before
    keys = ["model", "task", "domain"]
    same(table, expected, keys, [*RANKS, *SHARES, "top_1_before", "prompts", "lift"])
    # Donors: prompts of the task's own domain whose answer an FFN put on top.
    abstractive = raw["stages"][raw["stages"].prompt_set == "abstractive"]
    keys = ["model", "task", "prompt_set", "prompt_id"]
    rows = abstractive.merge(raw["prompts"][[*keys, "out_of_domain"]], on=keys)
    rows = rows[rows.function_site.isin(["ffn", "both"]) & ~rows.out_of_domain]
    eligible = rows.groupby(["model", "task"]).size().to_dict()
    for row in table.itertuples():
        assert row.eligible_donors == eligible.get((row.model, row.task), 0)


def test_search(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM search").df()
    keys = ["model", "task", "donor", "source_layer", "start_layer", "mode", "scale"]
    groups = judged(raw).query("split == 'dev'").groupby(keys, dropna=False)
    expected = groups[[*RANKS, "top_1"]].mean().assign(prompts=groups.size()).reset_index()
    same(table, expected, keys, [*RANKS, "top_1", "prompts"])


def test_tokenization(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM tokenization").df()
    rows = at_chosen(judged(raw).query("split == 'test' and control == 'o-vector'"), raw)
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


def test_paper_comparison(sweep):
    connection, raw = sweep
    table = connection.execute("SELECT * FROM paper_comparison").df()
    numbers = ["quantity", "paper_model", "task", "domain"]
    assert not table.duplicated([*numbers, "our_model"]).any()
    count = table.groupby(numbers).size()
    assert len(count) == 49 and (count == 2).all()  # each number, beside each of our models
    results = at_chosen(expected_effects(raw), raw).query("control == 'o-vector'")
    settings = chosen_settings(raw)
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
            "start layer": lambda: settings[cell][0],
            "source layer": lambda: settings[cell][2],
            "end layer": lambda: 11,
        }.get(row.quantity)
        if ours and len(here):
            assert row.our_value == pytest.approx(ours())
            assert row.prompts == here.units.item()
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
    errors = results[results.domain == "in"].groupby("model")[
        ["argument_stays", "other_answer", "other"]
    ]
    for model, shares in errors.mean().iterrows():
        order = shares.rank(ascending=False, method="min")
        assert values["place among errors: argument stays", "all", "in", model] == order.iloc[0]
        assert values["place among errors: other answer", "all", "in", model] == order.iloc[1]
    crossing = connection.execute(
        "SELECT depth FROM crossovers WHERE (task, prompt_set, subset) = "
        "('capitals', 'abstractive', 'correct') ORDER BY model"
    ).fetchall()
    found = table.query("quantity == 'depth of the crossover' and task == 'capitals'")
    assert found.sort_values("our_model").our_value.tolist() == [depth for (depth,) in crossing]
    assert values["X, abstractive prompts", "capitals", "in"].tolist() == [1, 1]
    assert values["X, extractive prompts", "capitals", "in"].tolist() == [0, 0]
    assert values["start layer", "capitals", "in"].tolist() == [CHOSEN, CHOSEN]


def test_the_caption_names_every_table(sweep):
    from vecsweep.stages.summary import SQL

    caption = (SQL.parent.parent / "report" / "tables.rst").read_text()
    for path in (SQL / "tables").glob("*.sql"):
        assert f"*{path.stem}*:" in caption
