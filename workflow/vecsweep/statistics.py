"""Every statistic of the tables and figures: bootstrap means, bands, curves, crossovers.

Intervals are of 95 %, by a bootstrap over the first axis: prompts, or donors where it says so.
"""

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
