"""What the engine costs: it and a naive variant run in turn.

1. interventions: an o-vector from every start layer to the last, resumed from one clean run,
   against a full forward for each start layer.
2. states and lens: batches, counted ranks and stored states, against one prompt at a time with
   the full vocabulary sorted at each layer, as in the paper's notebooks.
3. states: the forward that keeps every layer's states, against the bare model's.
Both variants must give the same ranks. Nothing is written.
"""

import time
from pathlib import Path
from statistics import median

from vecsweep import Problem

# Rounding moves a rank among thousands of close logits a little: at most by this share, or 1.
RANK_TOLERANCE = 0.01


def arguments(parser):
    parser.add_argument("--model", help="a model under --results [a packaged one]")
    parser.add_argument("--results", type=Path, default=Path("results"), help="of a sweep")
    parser.add_argument("--pairs", type=int, default=16, help="prompts of each set")
    parser.add_argument("--novel", type=int, default=3, help="prompts of the interventions")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")


def run(args):
    """Time both variants of each row in turn, check their ranks, print the table."""
    import torch  # --help need not wait for it

    from vecsweep.tools import bench_variants as variants

    torch.set_num_threads(args.threads)
    description, engine, readout, rows = variants.prepare(args)
    print(
        f"{description['model']}: {description['parameters'] / 1e6:.0f} M parameters, "
        f"{description['layers']} layers, vocabulary {description['vocabulary']}, "
        f"{description['dtype']}, on {engine.device.type}, {args.threads} thread(s); "
        f"medians of {args.repeats}"
    )
    both = [row for row in rows if row["prompt_set"] != "novel"]
    novel = [row for row in rows if row["prompt_set"] == "novel"][: args.novel]
    vector = variants.o_vector(engine, both)
    pairs = len(both) // 2  # one set after the other
    comparisons = [
        (
            f"interventions, {description['layers']} start layers x {len(novel)} prompts",
            lambda turn: variants.resumed_sweep(engine, readout, novel, vector),
            lambda turn: variants.full_sweep(engine, novel, vector),
            "at most 0.5",
        ),
        (
            f"states and lens, {len(both)} prompts",
            lambda turn: variants.batched_lens(engine, readout, both),
            # Its cost is by the prompt: each round takes another pair's two.
            lambda turn: variants.sorted_lens(engine, readout, both[turn % pairs :: pairs]),
            "at most 0.1",
        ),
        (
            f"states alone, {len(both)} prompts",
            lambda turn: variants.kept_states(engine, both),
            lambda turn: variants.bare_forward(engine, both),
            "",
        ),
    ]
    print(f"{'a prompt':45} {'engine':>10} {'naive':>10} {'ratio':>7}  {'range':>13}  aim")
    for name, ours, naive, aim in comparisons:
        times, equal = compare(name, ours, naive, args.repeats)
        print(table_line(name, times, aim) + equal, flush=True)


def compare(name, ours, naive, repeats):
    """([(seconds, seconds), ...] of both variants in turn, what to say of their ranks).

    A variant returns the number of prompts that it ran and its ranks by key.
    """
    times, ranks = [], ({}, {})
    for turn in range(repeats):
        pair = []
        for variant, found in zip((ours, naive), ranks):
            start = time.perf_counter()
            count, some = variant(turn)
            pair.append((time.perf_counter() - start) / count)
            found.update(some)
        times.append(pair)
    return times, check_ranks(name, *ranks)


def check_ranks(name, found: dict, expected: dict) -> str:
    """Problem unless both variants gave the same ranks, but for rounding."""
    if not expected:
        return ""
    if not expected.keys() <= found.keys():
        raise Problem(f"{name}: the two variants did not rank the same things")
    for key, rank in expected.items():
        if abs(found[key] - rank) > max(1, RANK_TOLERANCE * rank):
            raise Problem(f"{name}: rank {found[key]} at {key}, but {rank} by the naive variant")
    same = sum(found[key] == rank for key, rank in expected.items()) / len(expected)
    return f"  ({len(expected)} ranks: {same:.1%} equal, the rest but for rounding)"


def table_line(name, times, aim) -> str:
    """A line of the table: medians a prompt in ms, their ratio, and its range over the rounds."""
    ours, naive = (median(column) for column in zip(*times))
    ratios = [a / b for a, b in times]
    spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
    return (
        f"{name:45} {ours * 1e3:7.1f} ms {naive * 1e3:7.1f} ms {ours / naive:7.3f}  {spread:>13}"
        f"  {aim:11}"
    )
