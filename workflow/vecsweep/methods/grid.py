"""The grid that every method searches, and its best setting."""

import torch

from vecsweep.engine.plans import Plan, Position, end_layer
from vecsweep.methods import METHODS, Vector

SETTING = ("source_layer", "start_layer", "end_layer", "mode", "scale")


def start_layers(settings: dict, layers: int) -> list[int]:
    """The first edited layers to try: as many as the settings say, spread evenly; None: all."""
    return _spread(end_layer(settings, layers), settings["start_layers"])


def state_layers(settings: dict, layers: int) -> list[int]:
    """The layers whose state is edited: all, but no more settings than an o-vector of one layer has.

    The stream is edited in one way and the FFN in several modes: as many times more layers.
    """
    count = settings["start_layers"] and settings["start_layers"] * len(settings["modes"])
    return _spread(end_layer(settings, layers), count)


def _spread(end: int, count: int | None) -> list[int]:
    count = count or end + 1
    if count > end:
        return list(range(end + 1))
    return sorted({round(i * end / max(1, count - 1)) for i in range(count)})


def search_plans(
    vectors: list[Vector], settings: dict, first: int, last: int, layers: int
) -> list[Plan]:
    """Every candidate at every setting whose start layer is in first..last."""
    end = end_layer(settings, layers)
    plans = []
    for start in start_layers(settings, layers):
        if not first <= start <= last:
            continue
        # An edit of the last layer alone is a range too.
        ends = {end if extent == "range" else start for extent in settings["extents"]}
        for stop in sorted(ends, reverse=True):
            for mode in settings["modes"]:
                able = [v for v in vectors if mode in METHODS[v.method].modes]
                plans += plan(able, settings, start, stop, mode, settings["scales"])
    return plans


def state_plans(vectors: list[Vector], settings: dict, layers: int) -> list[Plan]:
    """Every setting of vectors for the stream.

    One with a source layer is the state after that layer: it is put there, once, and is not scaled.
    Others are put in once at each of `state_layers`, and in ranges from the o-vector's start layers.
    """
    end = end_layer(settings, layers)
    singles, starts = state_layers(settings, layers), start_layers(settings, layers)
    plans = []
    for start in sorted({*singles, *starts}):
        ends = {end} if "range" in settings["extents"] and start in starts else set()
        ends |= {start} if "once" in settings["extents"] and start in singles else set()
        for vector in vectors:
            (mode,) = METHODS[vector.method].modes
            if vector.source_layer == start:
                plans += plan([vector], settings, start, start, mode, [1.0])
            elif vector.source_layer is None:
                for stop in sorted(ends, reverse=True):
                    plans += plan([vector], settings, start, stop, mode, settings["scales"])
    return plans


def plan(vectors: list[Vector], settings: dict, start: int, end: int, mode, scales) -> list[Plan]:
    """One plan with each vector at each scale, none if there are none."""
    pairs = [
        (vector, scale)
        for vector in vectors
        for scale in (scales if vector.value.any() else [1.0])  # zero has no scale
    ]
    if not pairs:
        return []
    values = torch.stack([scale * vector.value for vector, scale in pairs])
    labels = [vector.names | {"scale": scale} for vector, scale in pairs]
    # The stream is edited where it was read: at the last token.
    position: Position = "last" if mode.endswith("_state") else settings["position"]
    return [Plan(start, end, mode, position, values, labels)]


def best_settings(search: list[dict]) -> dict[str, dict]:
    """Method -> its setting with the largest mean reciprocal rank of the answer on dev.

    Ties: the lowest start layer, then the lowest source layer, the longest range, replace, the
    smallest scale.
    """
    cells: dict[tuple, list] = {}
    for row in search:
        key = (row["method"], *(row[name] for name in SETTING))
        cells.setdefault(key, []).append(1 / (1 + row["answer_rank_after"]))

    def order(key):
        _, source, start, end, mode, scale = key
        mean = sum(cells[key]) / len(cells[key])
        return -mean, start, -1 if source is None else source, -end, mode != "replace", scale

    found: dict[str, dict] = {}
    for key in sorted(cells, key=order):
        found.setdefault(key[0], dict(zip(SETTING, key[1:])))
    return {name: found[name] for name in METHODS if name in found}
