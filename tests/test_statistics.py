"""Statistics: each against a direct computation, or a simulation whose truth is known."""

import itertools

import duckdb
import numpy as np
import pandas as pd
import pytest

from vecsweep.statistics import (
    MACROS,
    band,
    chance_among,
    crossed_means,
    crossover_depths,
    crossover_row,
    difference,
    formed_before,
    resampled_means,
    share_band,
    share_of,
    spread,
    wilson,
)


def test_wilson_is_the_same_in_sql():
    with duckdb.connect() as connection:
        connection.execute(MACROS)
        for count, right in [(1, 0), (1, 1), (30, 0), (30, 7), (30, 30), (263, 81)]:
            share = right / count
            query = "SELECT wilson_low($p, $n), wilson_high($p, $n)"
            found = connection.execute(query, {"p": share, "n": count}).fetchone()
            assert found == pytest.approx(wilson(share, count))
            assert 0 <= found[0] <= share + 1e-12 and share - 1e-12 <= found[1] <= 1


def test_intervals_end_at_0_and_1_to_the_last_bit():
    """A crumb above 0 passes for an effect: rises without one were "surely lifted" at n = 28."""
    with duckdb.connect() as connection:
        connection.execute(MACROS)
        query = "SELECT wilson_low(0, n) = 0 AND wilson_high(1, n) = 1 FROM range(1, 5000) AS t(n)"
        assert connection.execute(f"SELECT bool_and(x) FROM ({query}) AS t(x)").fetchone()[0]
    for count in range(1, 5000):
        assert wilson(0, count)[0] == 0 and wilson(1, count)[1] == 1
        assert band([0] * count, 2)[1] == 0 if count < 50 else True
    for count in range(1, 100):  # both ends solve the equation of the score interval
        for right in range(count + 1):
            share = right / count
            low, high = wilson(share, count)
            assert 0 <= low <= share <= high <= 1
            for end in (low, high):
                assert abs(end - share) == pytest.approx(
                    1.96 * np.sqrt(end * (1 - end) / count), abs=1e-12
                )


def test_of_no_effect_there_are_no_shares():
    parts, none = [0.2, 0.1, 0.3], [0.0, 0.0, 0.0]
    assert np.isnan(share_band(parts, none, 100)).all()
    assert np.isnan(share_band(parts, [1, -1, 0.1], 100)).all()  # may be none
    # Some resamples of the whole have no effect: the share has no upper bound in them.
    whole = [0.9, 0.8, 0.7, 0.6, -0.1, 0.9, 0.8, 0.5]
    share, low, high = share_band([0.5 * each for each in whole], whole, 2000)
    assert share == pytest.approx(0.5) and low == pytest.approx(0.5) and high >= 0.5 - 1e-12


def test_shares_count_prompts_not_vectors():
    # Twenty random vectors on ten prompts are no 200 prompts.
    values = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], (20, 1))
    assert share_of(values) == pytest.approx((0.1, *wilson(0.1, 10)))
    assert share_of(values[0]) == pytest.approx((0.1, *wilson(0.1, 10)))
    assert all(np.isnan(share_of(np.empty((1, 0)))))


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_no_band_has_zero_width(value):
    mean, low, high = band([value] * 12, 200)
    assert mean == value and (low, high) == wilson(value, 12)


def test_bands_hold_the_truth_as_often_as_they_say():
    """Prompts and vectors are both drawn: a band over prompts alone would be too narrow."""
    draw = np.random.default_rng(0)
    crossed = alone = 0
    for _ in range(200):
        vectors, prompts = draw.normal(0, 1, (8, 1)), draw.normal(0, 1, (1, 25))
        values = 3 + vectors + prompts + draw.normal(0, 0.3, (8, 25))
        _, low, high = band(values, 300)
        crossed += low <= 3 <= high
        low, high = np.quantile(resampled_means(values.mean(0), 300, 0), [0.025, 0.975])
        alone += low <= 3 <= high
    assert crossed > 170 > alone


def test_differences_are_paired():
    draw = np.random.default_rng(0)
    prompts = draw.random(30)
    ours, theirs = prompts + 0.05 + draw.normal(0, 0.02, 30), prompts
    found, low, high, p = difference(ours, theirs, 1000)
    each = ours - theirs
    assert found == pytest.approx(each.mean())
    # Unpaired, the spread of prompts would hide it.
    assert high - low == pytest.approx(2 * 1.96 * each.std() / 30**0.5, rel=0.3)
    assert low > 0 and p < 0.01
    assert difference(theirs, ours, 1000)[0] == pytest.approx(-found)
    assert difference(ours, ours, 1000) == (0, 0, 0, 1)


def test_p_is_of_the_mean_over_all_vectors():
    draw = np.random.default_rng(0)
    theirs = draw.random(30)
    ours = theirs + draw.normal(0.5, 0.02, (20, 30))
    ours[0] = theirs
    p = difference(ours, theirs, 100)[3]
    assert p == difference(ours.mean(0), theirs, 100)[3] < 0.01


def test_vectors_and_prompts_are_drawn_apart():
    """One draw for both would choose the same numbers of them, and favour the diagonal."""
    assert crossed_means(np.eye(20), 2000, 0).mean() == pytest.approx(1 / 20, rel=0.1)


def test_p_is_uniform_where_nothing_differs():
    draw = np.random.default_rng(1)
    found = [difference(*draw.normal(0, 1, (2, 20)), 500)[3] for _ in range(300)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09
    assert 0.4 < np.mean(np.array(found) < 0.5) < 0.6


@pytest.mark.parametrize("accepted, others", [*itertools.product((1, 2, 5), (0, 1, 4))])
def test_chance_is_the_mean_over_all_orders(accepted, others):
    answers = [True] * accepted + [False] * others
    places = [order.index(True) for order in itertools.permutations(answers)]
    if accepted + others > 7:
        order = np.random.default_rng(0).permuted(np.tile(answers, (200_000, 1)), axis=1)
        places = order.argmax(1)
    expected = np.mean(1 / (1 + np.array(places)))
    assert chance_among(accepted, others) == pytest.approx(expected, rel=0.01)


def test_best_of_many_is_no_feat():
    assert chance_among(60, 40) > 0.75 > 10 * chance_among(1, 99)


def crossing(leads):
    """Values [prompts, 2, 4] whose answer overtakes at layer 2, or (False) never does."""
    argument = np.array([0.9, 0.9, 0.2, 0.1])
    answer = np.array([0.1, 0.1, 0.6, 0.9])
    return np.array([[argument, answer if lead else 0 * answer] for lead in leads])


def test_resamples_without_a_crossover_are_said():
    values = crossing([True] * 10)
    found = crossover_row(values, resampled_means(values, 500, 0), {})
    assert (found["depth"], found["low"], found["high"], found["uncrossed"]) == (
        0.75,
        0.75,
        0.75,
        0,
    )
    # In 4 of 10 prompts the answer never comes: some resamples do not cross at all, some later.
    values = crossing([True] * 3 + [False] * 7)
    drawn = resampled_means(values, 2000, 0)
    found = crossover_row(values, drawn, {})
    never = np.mean([(mean[1, -1] <= mean[0, -1]) for mean in drawn])
    assert 0.02 < found["uncrossed"] == pytest.approx(never)
    assert found["depth"] >= 0.75 and (np.isnan(found["high"])) == (never > 0.025)


def ahead(leads):
    """Values [prompts, 2, 4] whose answer leads from layer 0 on, or (False) from 1 on."""
    argument = np.full((len(leads), 4), 0.1)
    argument[~np.array(leads), 0] = 0.4
    return np.stack([argument, np.full_like(argument, 0.2)], 1)


# The answer never stays ahead, or always is: resamples that cross end the interval on one side.
@pytest.mark.parametrize(
    "values", [crossing([True] + [False] * 9), ahead([True] * 7 + [False] * 3)]
)
def test_without_a_crossover_there_is_no_interval(values):
    drawn = resampled_means(values, 500, 0)
    found = crossover_row(values, drawn, {})
    assert 0.025 < found["uncrossed"] < 0.975  # so the resamples have an interval
    assert np.isnan([found["depth"], found["low"], found["high"]]).all()


def test_rows_are_spread_as_by_a_pivot():
    rows = pd.DataFrame({"a": [3, 1, 3, 7], "b": [1, 3, 7, 3], "x": [0.5, 1.0, 2.0, 4.0]})
    found = spread(rows, "a", "b", rows.x)
    np.testing.assert_array_equal(found, rows.pivot(index="a", columns="b", values="x"))
    both = spread(rows, "a", "b", rows.x, np.array([1, 3, 7]))
    np.testing.assert_array_equal(both, found)  # the same values stand in both
    assert spread(rows[:1], "a", "b", rows.x[:1], np.array([1, 3])).tolist()[1][0] == 0.5
    with pytest.raises(ValueError, match="two rows for one place"):
        spread(pd.concat([rows, rows[:1]]), "a", "b", 0)


def test_what_had_formed_is_before_each_resamples_own_crossover():
    """In half of the prompts the answer leads from layer 1 on, before the argument forms at layer 2."""
    argument, answer = np.full((20, 4), 0.1), np.full((20, 4), 0.2)
    argument[:, 2], answer[:, 2:] = 0.9, 0.8  # behind at layer 2 alone: crossed after it
    answer[:, 0], answer[:10, 2] = 0.0, 1.0
    values = np.stack([argument, answer], 1)
    drawn = resampled_means(values, 1000, 0)
    found = crossover_row(values, drawn, {})
    late = crossover_depths(drawn) == 1
    assert 0.2 < late.mean() < 0.8  # the mean is a tie of both
    assert formed_before(drawn).tolist() == pytest.approx(np.where(late, 0.9, 0.1))
    assert (found["formed_low"], found["formed_high"]) == pytest.approx((0.1, 0.9))
    # Nothing is crossed, by the mean or in any resample.
    behind = np.stack([answer + 0.5, answer], 1)
    row = crossover_row(behind, resampled_means(behind, 50, 0), {})
    assert np.isnan(row["formed"]) and row["formed_low"] == row["formed_high"] == 0
