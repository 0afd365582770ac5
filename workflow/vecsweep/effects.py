"""Table `effects`: what each method did on test, with intervals, beside the o-vector."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from vecsweep.statistics import ENOUGH, band, difference, places, share_of

SETTING = (
    *("model", "ovector_task", "task", "domain", "method", "source_layer"),
    *("start_layer", "end_layer", "mode", "scale"),
)
# Means over prompts, and shares of prompts; each gets an interval.
MEANS = (
    *("reciprocal_rank_before", "reciprocal_rank_after", "rise", "among_before", "among_after"),
    *("own_lift", "others_lift"),
)
SHARES = (
    *("argument_before", "top_1_before", "top_1", "top_5", "top_10", "no_effect"),
    *("argument_stays", "other_answer", "other"),
)
AFTER = "reciprocal_rank_after"
VERSUS = ("difference", "difference_low", "difference_high", "p")
TEXTS = ("model", "ovector_task", "task", "domain", "method", "mode", "transfer")
NUMBERS = ("start_layer", "end_layer", "prompts", "vectors")


def effects(connection, model: str, resamples: int) -> pd.DataFrame:
    """The rows of one model: each method at its own best setting, in each set of test prompts."""
    found = []
    query = """SELECT DISTINCT ovector_task, task, domain FROM outcomes
               WHERE split = 'test' AND model = ? ORDER BY ALL"""
    for ovector_task, task, domain in connection.execute(query, [model]).fetchall():
        rows = connection.execute(
            """SELECT *, coalesce(donor, repeat, 0) AS vector,
                      reciprocal_rank_after - reciprocal_rank_before AS rise
               FROM outcomes
               WHERE split = 'test' AND (model, ovector_task, task, domain) = (?, ?, ?, ?)
               ORDER BY method, vector, prompt_id""",
            [model, ovector_task, task, domain],
        ).df()
        methods = dict(iter(rows.groupby("method", sort=True)))
        reference = matrices(methods["o-vector"])(AFTER) if "o-vector" in methods else None
        found += [row(group, reference, resamples) for group in methods.values()]
    return frame(found)


def matrices(group: pd.DataFrame) -> Callable[[str], np.ndarray]:
    """Measure -> that of one method [vectors, prompts]; nan where a vector lacks a prompt."""
    matrix = places(group, "vector", "prompt_id")
    return lambda measure: matrix(group[measure].to_numpy(float))


def row(group: pd.DataFrame, reference: np.ndarray | None, resamples: int) -> dict:
    """A row of the table from one method's outcomes; `reference` the o-vector's matrix."""
    found = {name: group[name].iloc[0] for name in SETTING}
    matrix = matrices(group)
    after = matrix(AFTER)
    found |= {"prompts": after.shape[1], "vectors": len(after)}
    for measure in MEANS:
        found |= ends(measure, band(matrix(measure), resamples))
    for measure in SHARES:
        # Some count only some prompts: no effect, those whose argument was on top before.
        values = matrix(measure)
        found |= ends(measure, share_of(values[:, ~np.isnan(values).any(0)]))
    found["among_chance"] = group["among_chance"].mean()
    found["transfer"] = transfer(found)
    versus = (math.nan,) * 4 if reference is None else difference(after, reference, resamples)
    return found | dict(zip(VERSUS, versus))


def ends(name: str, values: tuple[float, float, float]) -> dict:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values))


def transfer(found: dict) -> str:
    """What a method carries over: see `transfer` in tables.yaml."""
    if found["prompts"] < ENOUGH:
        return "few"
    if found["rise_low"] <= 0:
        return "none"
    return "argument" if found["among_after_low"] > found["among_chance"] else "class"


def frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame whose columns have types, also without rows."""
    columns = [*SETTING, "prompts", "vectors", "among_chance", "transfer", *VERSUS]
    columns += [f"{m}{end}" for m in (*MEANS, *SHARES) for end in ("", "_low", "_high")]
    types = dict.fromkeys(columns, "float64")
    types |= dict.fromkeys(TEXTS, "str") | dict.fromkeys(NUMBERS, "int32")
    return pd.DataFrame(rows, columns=columns).astype(types | {"source_layer": "Int32"})
