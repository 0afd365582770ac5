"""Tables that statistics make of the database's others: curves, effects, and bands for figures."""

import numpy as np
import pandas as pd

from vecsweep.effects import effects
from vecsweep.statistics import (
    BAND,
    SEED,
    band,
    crossover_row,
    curve_rows,
    pair_band,
    resampled_means,
    share_band,
    share_of,
    spread,
)


def add_statistics(connection, resamples: int, seed: int = SEED) -> None:
    """Tables `curves`, `crossovers` and `effects`: means over prompts with 95 % bands.

    `curves`: mean reciprocal rank of argument and answer by layer. `crossovers`: the depth,
    (layer + 1) / layers, from which on the answer's mean reciprocal rank is the larger one.
    Subset `correct` holds the prompts that are answered correctly, `all` every prompt.
    """
    # A cell at a time: memory does not grow with the sweep. One transaction: one write.
    connection.begin()
    query = "SELECT DISTINCT model, task, prompt_set FROM stages ORDER BY ALL"
    for cell in connection.execute(query).fetchall():
        for labels, values in subsets(connection, *cell):
            drawn = resampled_means(values, resamples, seed)
            add(connection, "curves", pd.DataFrame(curve_rows(values, drawn, labels)))
            add(connection, "crossovers", pd.DataFrame([crossover_row(values, drawn, labels)]))
    for (model,) in connection.execute("SELECT model FROM models ORDER BY ALL").fetchall():
        add(connection, "effects", effects(connection, model, resamples))
    add_swap_bands(connection, resamples, seed)
    add_attribution_bands(connection, resamples, seed)
    add_patching_bands(connection, resamples, seed)
    add_tuned_curves(connection, resamples, seed)
    add_tuned_layers(connection, resamples, seed)
    connection.commit()


def add_swap_bands(connection, resamples: int, seed: int) -> None:
    """Table `swap_bands`: whose answer is on top after an exchange, with intervals over prompts.

    A row for each layer, of all prompts that exchange; and one without a layer, of what prompts
    exchange at their own function layer, with others whose answer the same layer's FFN put on top.
    """
    keys = ["model", "task", "sublayer", "layer"]
    shares = ("own", "others", "own_dropped")
    columns = [f"{share}{end}" for share in shares for end in ("", "_low", "_high")]
    types = dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64")
    types |= {"layer": "Int32", "pairs": "int64", "prompts": "int64"}
    found = []
    for cell in connection.execute(
        "SELECT DISTINCT model, task FROM swaps ORDER BY ALL"
    ).fetchall():
        rows = connection.execute(
            """WITH applied AS (
                   SELECT DISTINCT prompt_id AS other_id, function_layer AS layer
                   FROM swaps
                   WHERE model = $model AND task = $task AND function_site IN ('ffn', 'both')
               )
               SELECT s.* REPLACE (coalesce(other_id, -1) AS other_id),
                      layer = function_layer AND function_site IN ('ffn', 'both')
                      AND (s.other_id IS NULL OR a.other_id IS NOT NULL) AS applied
               FROM swaps AS s LEFT JOIN applied AS a USING (other_id, layer)
               WHERE model = $model AND task = $task""",
            dict(zip(("model", "task"), cell)),
        ).df()
        for part, group in rows.groupby("sublayer", sort=True):
            subsets = [*group.groupby("layer", sort=True), (None, group[group.applied])]
            for layer, some in subsets:
                alone = some.other_id == -1
                prompts = np.unique(some.prompt_id[~alone])
                if not len(prompts):
                    continue
                # Both ways: who gives is one of those who take.
                pairs = some[~alone & some.other_id.isin(prompts)]
                values = []
                for share in shares[:2]:
                    hits = spread(pairs, "prompt_id", "other_id", pairs.outcome == share, prompts)
                    values += pair_band(hits, resamples, seed)
                if alone.any():
                    kept = some.prompt_id[alone & (some.outcome == "own")]
                    values += share_of(np.isin(prompts, kept))
                else:
                    values += [np.nan] * 3
                found.append([*cell, part, layer, len(pairs), len(prompts), *values])
    frame = pd.DataFrame(found, columns=[*keys, "pairs", "prompts", *columns])
    add(connection, "swap_bands", frame.astype(types))


def add_attribution_bands(connection, resamples: int, seed: int) -> None:
    """Table `attribution_bands`: mean contributions, with bands.

    Of in-domain prompts answered correctly, as all means by layer.
    """
    keys = ["model", "task", "prompt_set", "layer", "sublayer"]
    columns = ["contribution", "low", "high"]
    types = dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64")
    types |= {"layer": "Int16", "prompts": "int64"}
    add(connection, "attribution_bands", pd.DataFrame(columns=[*types]).astype(types))
    own = """FROM attribution JOIN prompts USING (model, task, prompt_set, prompt_id)
             WHERE attribution.correct AND NOT out_of_domain"""
    cells = f"SELECT DISTINCT model, task, prompt_set {own} ORDER BY ALL"
    for cell in connection.execute(cells).fetchall():
        rows = connection.execute(
            f"""SELECT prompt_id, layer, sublayer, contribution {own}
                AND model = ? AND task = ? AND prompt_set = ?""",
            cell,
        ).df()
        # Embedding and biases have no layer; pandas would leave them out.
        rows["layer"] = rows.layer.astype("Int16").fillna(-1)
        wide = rows.pivot(
            index="prompt_id", columns=["layer", "sublayer"], values="contribution"
        ).sort_index(axis=1)
        values = wide.to_numpy(float)
        low, high = np.quantile(resampled_means(values, resamples, seed), BAND, axis=0)
        found = [
            [*cell, None if layer < 0 else layer, part, *numbers, len(wide)]
            for (layer, part), *numbers in zip(wide.columns, values.mean(0), low, high)
        ]
        frame = pd.DataFrame(found, columns=[*keys, *columns, "prompts"])
        add(connection, "attribution_bands", frame[[*types]].astype(types))


def add_patching_bands(connection, resamples: int, seed: int) -> None:
    """Table `patching_bands`: mean shares that were restored, with bands over pairs of prompts.

    A pair's two directions are one value: they share their prompts. Where all pairs are alike, as
    they must be after the last block, there is no band.
    """
    keys = ["model", "task", "layer", "sublayer", "position"]
    columns = ["restored", "low", "high"]
    types = dict.fromkeys(keys, "str") | {"layer": "int32", "pairs": "int64"}
    types |= dict.fromkeys(columns, "float64")
    rows = connection.execute(
        """SELECT model, task, layer, sublayer, position, least(prompt_id, other_id) AS pair,
                  round(avg(restored::DOUBLE), 6) AS restored  -- what rounding leaves of 0 is no spread
           FROM patching GROUP BY ALL ORDER BY ALL"""
    ).df()
    found = [
        [*key, len(group), mean, *((low, high) if np.ptp(group.restored) else (np.nan, np.nan))]
        for key, group in rows.groupby(keys, sort=True)
        for mean, low, high in [band(group.restored, resamples, seed)]
    ]
    frame = pd.DataFrame(found, columns=[*keys, "pairs", *columns])
    add(connection, "patching_bands", frame.astype(types))


def add_tuned_curves(connection, resamples: int, seed: int) -> None:
    """Tables `tuned_curves` and `tuned_crossovers`: the plain and the tuned lens on the same prompts."""
    for table, columns in (("tuned_curves", CURVES), ("tuned_crossovers", CROSSOVERS)):
        add(connection, table, pd.DataFrame(columns=[*columns]).astype(columns))
    cells = "SELECT DISTINCT model, task FROM tuned WHERE part != 'held-out' ORDER BY ALL"
    for model, task in connection.execute(cells).fetchall():
        rows = connection.execute(
            """SELECT prompt_id, layer, target, reciprocal_rank AS plain,
                      1 / (1 + if(target = 'argument', t.argument_rank, t.answer_rank)) AS tuned
               FROM tuned AS t JOIN lens USING (model, task, prompt_set, prompt_id, layer)
               JOIN stages USING (model, task, prompt_set, prompt_id)
               WHERE site = 'resid_post' AND part != 'held-out' AND pattern != 'incorrect'
                     AND model = ? AND task = ?""",
            [model, task],
        ).df()
        for lens in ("plain", "tuned") if len(rows) else ():
            wide = rows.pivot(index="prompt_id", columns=["target", "layer"], values=lens)
            wide = wide.sort_index(axis=1)
            values = np.stack([wide["argument"].values, wide["answer"].values], axis=1)
            drawn = resampled_means(values, resamples, seed)
            labels = {"model": model, "task": task, "lens": lens}
            curves = pd.DataFrame(curve_rows(values, drawn, labels))
            add(connection, "tuned_curves", curves[[*CURVES]].astype(CURVES))
            crossing = pd.DataFrame([crossover_row(values, drawn, labels)])
            add(connection, "tuned_crossovers", crossing[[*CROSSOVERS]].astype(CROSSOVERS))


def add_tuned_layers(connection, resamples: int, seed: int) -> None:
    """Table `tuned_layers`: mean KL of both lenses, held-out prompts and reported ones."""
    add(connection, "tuned_layers", pd.DataFrame(columns=[*LAYERS]).astype(LAYERS))
    cells = "SELECT DISTINCT model, layer FROM tuned ORDER BY ALL"
    for cell in connection.execute(cells).fetchall():
        rows = connection.execute(
            """SELECT part, ridge::DOUBLE AS ridge, steps::DOUBLE AS steps, kl AS tuned,
                      plain_kl AS plain
               FROM tuned
               WHERE model = ? AND layer = ? ORDER BY task, prompt_set, prompt_id""",
            cell,
        ).df()
        apart = rows.part == "held-out"
        chosen = [rows.ridge[0], rows.steps[0]]
        found = []
        for lens in ("plain", "tuned"):
            shown = rows[lens][~apart]
            numbers = band(shown, resamples, seed) if len(shown) else [np.nan] * 3
            held = [int(apart.sum()), rows[lens][apart].mean()]
            found.append([*cell, lens, *chosen, *held, len(shown), *numbers])
        add(connection, "tuned_layers", pd.DataFrame(found, columns=[*LAYERS]).astype(LAYERS))


NAMES = dict.fromkeys(("model", "task", "lens"), "str")
MEANS = dict.fromkeys(("reciprocal_rank", "low", "high", "top_1", "top_10"), "float64")
CURVES = NAMES | {"target": "str", "layer": "int64", "depth": "float64", "prompts": "int64"} | MEANS
CROSSOVERS = NAMES | {"prompts": "int64"} | dict.fromkeys(
    ("depth", "low", "high", "uncrossed", "formed", "formed_low", "formed_high", "argument_peak"),
    "float64",
) | {"argument_peak_layer": "int64", "argument_end": "float64", "answer_end": "float64"}  # fmt: skip
LAYERS = {"model": "str", "layer": "int64", "lens": "str", "ridge": "float64", "steps": "float64"}
LAYERS |= {"held_out": "int64", "held_out_kl": "float64", "prompts": "int64"}
LAYERS |= dict.fromkeys(("kl", "low", "high"), "float64")


def add(connection, table: str, rows: pd.DataFrame) -> None:
    """Append rows to a table, which the first ones make."""
    connection.register("frame", rows)
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM frame LIMIT 0")
    connection.execute(f"INSERT INTO {table} SELECT * FROM frame")


def subsets(connection, model: str, task: str, prompt_set: str):
    """(labels, reciprocal ranks [prompts, 2, layers]) of the subsets `all` and `correct`.

    In-domain prompts alone, so that no quota of another group weighs in. A subset without prompts
    is left out.
    """
    rows = connection.execute(
        """SELECT prompt_id, layer, target, reciprocal_rank, pattern != 'incorrect' AS correct
           FROM lens JOIN stages USING (model, task, prompt_set, prompt_id)
           JOIN prompts USING (model, task, prompt_set, prompt_id)
           WHERE site = 'resid_post' AND NOT out_of_domain AND model = ? AND task = ? AND prompt_set = ?
           ORDER BY target, layer, prompt_id""",
        [model, task, prompt_set],
    ).df()
    for subset in ("all", "correct"):
        chosen = rows if subset == "all" else rows[rows.correct]
        if chosen.empty:
            continue
        wide = chosen.pivot(
            index="prompt_id", columns=["target", "layer"], values="reciprocal_rank"
        ).sort_index(axis=1)
        labels = {"model": model, "task": task, "prompt_set": prompt_set, "subset": subset}
        yield labels, np.stack([wide["argument"].values, wide["answer"].values], axis=1)


def add_bands(connection, resamples: int) -> None:
    """What figures draw with a band: `layer_bands`, `part_bands`.

    Means over prompts of the views methods_by_layer and parts; the share of a part is of the
    whole vector's lift.
    """
    for query, table, keys, columns in BANDS:
        rows = connection.execute(f"SELECT * FROM {query}").df()
        add(
            connection, table, pd.DataFrame(columns=[*keys, *columns]).astype(_types(keys, columns))
        )
        found = []
        for key, group in rows.groupby(keys, sort=True):
            found.append([*key, len(group), *BANDED[table](group, resamples)])
        if found:
            frame = pd.DataFrame(found, columns=[*keys, *columns])
            add(connection, table, frame.astype(_types(keys, columns)))


def _types(keys, columns):
    numbers = {"start_layer": "int32", "prompts": "int32"}
    return dict.fromkeys(keys, "str") | dict.fromkeys(columns, "float64") | {
        c: kind for c, kind in numbers.items() if c in (*keys, *columns)
    }  # fmt: skip


def _layer_band(group, resamples):
    return *band(group.after, resamples), group.before.mean()


def _part_band(group, resamples):
    lift, whole = group.after - group.before, group.whole - group.before
    return *share_band(lift, whole, resamples), band(whole, resamples)[1]


# View or query, table, keys, columns of its bands after the number of prompts.
BANDS = (
    (
        "methods_by_layer",
        "layer_bands",
        ["model", "task", "method", "start_layer"],
        ["prompts", "after", "low", "high", "before"],
    ),
    (
        "parts",
        "part_bands",
        ["model", "task", "basis", "k"],
        ["prompts", "share", "low", "high", "whole_low"],
    ),
)
BANDED = {"layer_bands": _layer_band, "part_bands": _part_band}
