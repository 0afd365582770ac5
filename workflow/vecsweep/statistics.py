"""Every statistic of the tables and figures: intervals, paired differences, curves, crossovers.

Intervals are of 95 %. Shares have Wilson's. Means have a bootstrap over prompts; where a method has
several vectors (random ones, other donors), over its vectors and over prompts, crosswise. A
bootstrap of values that are all alike says nothing of their spread: those between 0 and 1 then get
Wilson's interval of their mean, which is the widest that such values can have.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

BAND = [0.025, 0.975]
SEED = 0
FEW = 10  # right answers below which a cell is "too few", and no finding
SIGNS = 20_000  # drawn for a p: enough for one that is adjusted for a hundred tests
ENOUGH = 20  # prompts below which no yes or no is said

# The same in SQL, for the views of the database.
MACROS = f"""
CREATE MACRO wilson_low(p, n) AS
    p * p / (p + 1.9208 / n + 1.96 * sqrt(greatest(p * (1 - p), 0) / n + 0.9604 / (n * n)));
CREATE MACRO wilson_high(p, n) AS 1 - wilson_low(1 - p, n);
CREATE MACRO too_few(n) AS n < {FEW};
CREATE MACRO enough(n) AS n >= {ENOUGH};
"""


def wilson(share: float, count: float) -> tuple[float, float]:
    """(low, high): Wilson's score interval of a share of `count`.

    Both ends solve one equation, and the product of its solutions is known: so 0 is 0 to the last
    bit, and no crumb above it that would pass for an effect.
    """
    half = 1.96 * math.sqrt(max(share * (1 - share), 0) / count + 0.9604 / count**2)
    rest = 1 - share
    low, over = (x**2 / (x + 1.9208 / count + half) for x in (share, rest))
    return low, 1 - over


def share_of(values) -> tuple[float, float, float]:
    """(share, low, high) of values [vectors, prompts] or [prompts], each 0 to 1; nan if none.

    Vectors do not count as prompts: n is the number of prompts.
    """
    values = np.atleast_2d(np.array(values, float))
    if not values.size:
        return math.nan, math.nan, math.nan
    share = float(values.mean())
    return share, *wilson(share, values.shape[1])


def band(values, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(mean, low, high) of values [prompts] or [vectors, prompts]."""
    values = np.atleast_2d(np.array(values, float))
    mean = float(values.mean())
    if np.ptp(values) == 0 and 0 <= mean <= 1:
        return mean, *wilson(mean, values.shape[1])
    low, high = np.quantile(crossed_means(values, resamples, seed), BAND)
    return mean, float(low), float(high)


def difference(ours, theirs, resamples: int, seed: int = SEED) -> tuple[float, float, float, float]:
    """(mean of ours minus theirs, low, high, p), paired by prompt.

    Both [vectors, prompts] or [prompts]. p, two-sided: how often signs drawn at random for the
    prompts' differences make as large a mean; prompts are exchanged, vectors averaged.
    """
    ours, theirs = (np.atleast_2d(np.array(v, float)) for v in (ours, theirs))
    found = float(ours.mean() - theirs.mean())
    # The same prompts in every resample, each side's own vectors.
    drawn = crossed_means(ours, resamples, seed) - crossed_means(theirs, resamples, seed)
    low, high = np.quantile(drawn, BAND)
    each = ours.mean(0) - theirs.mean(0)
    generator, as_far = np.random.default_rng(seed), 1  # the observed signs are one of them
    for _ in range(SIGNS // 1000):
        signs = generator.choice([-1.0, 1.0], (1000, len(each)))
        as_far += (np.abs(signs @ each) >= abs(each.sum()) - 1e-12).sum()
    return found, float(low), float(high), float(as_far / (SIGNS + 1))


@cache
def chance_among(accepted: int, others: int) -> float:
    """Expected 1 / (1 + place) of the best of `accepted` answers among `others`, in random order.

    With one accepted it is the harmonic mean's H_n / n for n = others + 1; with many it is near 1:
    the best of 60 is no feat.
    """
    found, above = 0.0, 1.0  # above: probability that the first `place` of the order are all others
    for place in range(others + 1):
        left = others + accepted - place
        found += above * accepted / left / (1 + place)
        above *= (others - place) / left
    return found


def share_band(parts, wholes, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(share, low, high): the mean of parts over that of wholes, both [n], paired.

    nan where the wholes' mean is not surely above 0: of nothing there are no shares.
    """
    if band(wholes, resamples, seed)[1] <= 0:
        return math.nan, math.nan, math.nan
    both = np.stack([np.array(parts, float), np.array(wholes, float)], 1)
    part, whole = both.mean(0)
    drawn, of = resampled_means(both, resamples, seed).T
    # Of a resample without an effect the share has no bound, on the part's side.
    endless = np.where(drawn > 0, np.inf, -np.inf)
    low, high = np.quantile(np.divide(drawn, of, out=endless, where=of > 0), BAND)
    return float(part / whole), float(low), float(high)


def spread(rows, index: str, columns: str, values, both=None) -> np.ndarray:
    """`values` of a frame's rows as a matrix over two of its columns, nan where there is no row.

    Over what stands in each, sorted, or over the sorted values `both`. ValueError if two rows have
    one place. As pandas' pivot, which takes a hundred times as long for a matrix of this size.
    """
    return places(rows, index, columns, both)(values)


def places(rows, index: str, columns: str, both=None) -> Callable:
    """What `spread` does with values, for several of them: the rows' places are the same."""
    found = [rows[name].to_numpy() for name in (index, columns)]
    ids = [np.unique(values) if both is None else both for values in found]
    row, column = (np.searchsorted(i, values) for i, values in zip(ids, found))
    shape = tuple(map(len, ids))
    flat = np.ravel_multi_index((row, column), shape)
    if len(np.unique(flat)) < len(rows):
        raise ValueError("two rows for one place")

    def matrix(values) -> np.ndarray:
        found = np.full(shape, np.nan)
        found.flat[flat] = values
        return found

    return matrix


def crossed_means(values, resamples: int, seed: int):
    """Bootstrap means [resamples] of values [vectors, prompts], both resampled."""
    prompts = shares(values.shape[1], resamples, seed)
    if len(values) == 1:
        return prompts @ values[0]
    vectors = shares(len(values), resamples, seed + 1)
    return np.einsum("rv,vp,rp->r", vectors, values, prompts)


def resampled_means(values, resamples: int, seed: int):
    """Bootstrap means over the first axis: values [prompts, ...] -> [resamples, ...]."""
    return np.tensordot(shares(len(values), resamples, seed), values, axes=1)


@lru_cache(maxsize=4)
def shares(count: int, resamples: int, seed: int):
    """How much each of `count` values weighs in each resample, [resamples, count]."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples) / count


def pair_band(values, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(share, low, high) over the ordered pairs of different items, values [items, items] of 0, 1.

    A pair shares its items with others, so that pairs are not resampled but items, in both roles:
    a pair weighs the product of how often its two items were drawn, an item beside itself nothing,
    nor what is nan. Of few items the spread says little where nearly all pairs agree, so the
    interval is never narrower, at either end, than Wilson's for as many trials as there are items.
    """
    values = np.array(values, float)
    np.fill_diagonal(values, np.nan)
    pairs = ~np.isnan(values)
    values = np.where(pairs, values, 0)
    share = float(values.sum() / pairs.sum())
    drawn = shares(len(values), resamples, seed)
    weight = ((drawn @ pairs) * drawn).sum(1)  # of all pairs; 0 where one item alone was drawn
    drawn, weight = drawn[weight > 1e-9], weight[weight > 1e-9]
    low, high = np.quantile(((drawn @ values) * drawn).sum(1) / weight, BAND)
    least, most = wilson(share, len(values))
    return share, min(float(low), least), max(float(high), most)


def curve_rows(values, drawn, labels: dict) -> list[dict]:
    """Rows of `curves` from values [prompts, 2, layers] and their bootstrap means."""
    low, high = np.quantile(drawn, BAND, axis=0)
    layers = values.shape[-1]
    rows = []
    for k, target in enumerate(("argument", "answer")):
        for layer in range(layers):
            these = values[:, k, layer]
            ends = low[k, layer], high[k, layer]
            if np.ptp(these) == 0:
                ends = wilson(float(these[0]), len(these))
            rows.append(
                labels
                | {
                    "target": target,
                    "layer": layer,
                    "depth": (layer + 1) / layers,
                    "prompts": len(values),
                    "reciprocal_rank": these.mean(),
                    "low": ends[0],
                    "high": ends[1],
                    "top_1": (these == 1).mean(),
                    "top_10": (these >= 1 / 10).mean(),
                }
            )
    return rows


def crossover_row(values, drawn, labels: dict) -> dict:
    """A row of `crossovers`; depth is missing where the answer never stays ahead.

    A resample without a crossover counts as one before the first layer (the answer leads from
    there) or after the last; an end of the interval that falls there is missing. `uncrossed` is the
    share of such resamples. `formed` is the argument's largest mean before the crossover; its
    interval is of both, for each resample has a depth of its own, and 0 where it has none.
    """
    found = crossover_depths(values.mean(0, keepdims=True))[0]
    spread = crossover_depths(drawn)
    ends = np.quantile(spread, BAND, method="inverted_cdf")
    low, high = (end if np.isfinite(end) else np.nan for end in ends)
    argument = values[:, 0].mean(0)
    (largest,) = formed_before(values.mean(0, keepdims=True))
    formed_low, formed_high = np.quantile(formed_before(drawn), BAND)
    return labels | {
        "prompts": len(values),
        "depth": found if np.isfinite(found) else np.nan,
        "low": low if np.isfinite(found) else np.nan,
        "high": high if np.isfinite(found) else np.nan,
        "uncrossed": float((~np.isfinite(spread)).mean()),
        "formed": float(largest) if np.isfinite(found) else np.nan,
        "formed_low": formed_low,
        "formed_high": formed_high,
        "argument_peak": argument.max(),
        "argument_peak_layer": int(argument.argmax()),
        "argument_end": argument[-1],
        "answer_end": values[:, 1, -1].mean(),
    }


def last_behind_of(means):
    """The last layer [n] at which the answer does not lead, -1 if there is none; means [n, 2, layers]."""
    behind = means[:, 1] <= means[:, 0]
    return np.where(behind.any(-1), means.shape[-1] - 1 - behind[:, ::-1].argmax(-1), -1)


def formed_before(means):
    """The argument's largest mean [n] before the answer leads for good, 0 if nothing is crossed."""
    layers, last_behind = means.shape[-1], last_behind_of(means)
    before = np.arange(layers) <= last_behind[:, None]
    largest = np.where(before, means[:, 0], 0).max(-1)
    return np.where(last_behind < layers - 1, largest, 0)


def crossover_depths(means):
    """Depths [n] from which on the answer leads for good, means [n, 2, layers].

    inf if it never does, -inf if it leads from the first layer on: nothing is crossed then.
    """
    layers, last_behind = means.shape[-1], last_behind_of(means)
    depths = np.where(last_behind < layers - 1, (last_behind + 2) / layers, np.inf)
    return np.where(last_behind < 0, -np.inf, depths)
