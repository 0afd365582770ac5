"""Every statistic of the tables and figures: bootstrap means, bands, curves, crossovers.

Intervals are of 95 %, by a bootstrap over the first axis: prompts, or donors where it says so.
"""

import math
from functools import lru_cache

import numpy as np

BAND = [0.025, 0.975]
SEED = 0


def band(values, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(mean, low, high) of values [n]."""
    values = np.array(values, float)
    low, high = np.quantile(resampled_means(values, resamples, seed), BAND)
    return float(values.mean()), float(low), float(high)


def share_band(parts, wholes, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(share, low, high): the mean of parts over that of wholes, both [n], paired."""
    both = np.stack([np.array(parts, float), np.array(wholes, float)], 1)
    drawn = resampled_means(both, resamples, seed)
    part, whole = both.mean(0)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], BAND)
    return float(part / whole), float(low), float(high)


def resampled_means(values, resamples: int, seed: int):
    """Bootstrap means over the first axis: values [prompts, ...] -> [resamples, ...]."""
    return np.tensordot(shares(len(values), resamples, seed), values, axes=1)


@lru_cache(maxsize=2)
def shares(count: int, resamples: int, seed: int):
    """How much each of `count` values weighs in each resample, [resamples, count]."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples) / count


def wilson(share: float, count: int) -> tuple[float, float]:
    """(low, high): 95 % Wilson score interval of a share of `count`."""
    middle = share + 1.9208 / count
    wide = 1.96 * math.sqrt(share * (1 - share) / count + 0.9604 / count**2)
    return (middle - wide) / (1 + 3.8416 / count), (middle + wide) / (1 + 3.8416 / count)


def pair_band(values, resamples: int, seed: int = SEED) -> tuple[float, float, float]:
    """(share, low, high) over the ordered pairs of different items, values [items, items] of 0, 1.

    A pair shares its items with others, so that pairs are not resampled but items, in both roles:
    a pair weighs the product of how often its two items were drawn, an item beside itself nothing.
    Where all resamples agree, as they do where all pairs do, their spread says nothing: Wilson's
    interval for as many trials as there are items stands in its place.
    """
    values = np.array(values, float)
    count = len(values)
    np.fill_diagonal(values, 0)
    share = values.sum() / (count * (count - 1))
    drawn = shares(count, resamples, seed)
    weight = 1 - (drawn**2).sum(1)  # of all pairs; 0 where one item alone was drawn
    drawn, weight = drawn[weight > 1e-9], weight[weight > 1e-9]
    found = ((drawn @ values) * drawn).sum(1) / weight
    if np.ptp(found) < 1e-9:
        return float(share), *wilson(share, count)
    low, high = np.quantile(found, BAND)
    return float(share), float(low), float(high)


def curve_rows(values, drawn, labels: dict) -> list[dict]:
    """Rows of `curves` from values [prompts, 2, layers] and their bootstrap means."""
    low, high = np.quantile(drawn, BAND, axis=0)
    layers = values.shape[-1]
    return [
        labels
        | {
            "target": target,
            "layer": layer,
            "depth": (layer + 1) / layers,
            "prompts": len(values),
            "reciprocal_rank": values[:, k, layer].mean(),
            "low": low[k, layer],
            "high": high[k, layer],
            "top_1": (values[:, k, layer] == 1).mean(),
            "top_10": (values[:, k, layer] >= 1 / 10).mean(),
        }
        for k, target in enumerate(("argument", "answer"))
        for layer in range(layers)
    ]


def crossover_row(values, drawn, labels: dict) -> dict:
    """A row of `crossovers`; depth is missing where the answer never stays ahead."""
    found = crossover_depths(values.mean(0, keepdims=True))[0]
    spread = crossover_depths(drawn)
    spread = spread[~np.isnan(spread)]
    low, high = np.quantile(spread, BAND) if len(spread) else (np.nan, np.nan)
    argument = values[:, 0].mean(0)
    return labels | {
        "prompts": len(values),
        "depth": found,
        "low": low,
        "high": high,
        "argument_peak": argument.max(),
        "argument_peak_layer": int(argument.argmax()),
        "argument_end": argument[-1],
        "answer_end": values[:, 1, -1].mean(),
    }


def crossover_depths(means):
    """Depths [n] from which on the answer leads for good, means [n, 2, layers].

    nan if it never does, or if it leads from the first layer on: nothing is crossed then.
    """
    layers = means.shape[-1]
    behind = means[:, 1] <= means[:, 0]
    last_behind = np.where(behind.any(-1), layers - 1 - behind[:, ::-1].argmax(-1), -1)
    crossed = (last_behind >= 0) & (last_behind < layers - 1)
    return np.where(crossed, (last_behind + 2) / layers, np.nan)
