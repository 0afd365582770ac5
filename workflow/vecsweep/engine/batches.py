"""Batches of prompts of one length; what does not fit in memory is tried again in halves.

`batch_tokens` is a wish. Where a pass fails for memory, it is halved for the rest of the job, down to
one prompt, and the pass alone is done again. What comes out is the same, as with a smaller
`batch_tokens` from the start.
"""

import ctypes
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vecsweep import Problem

if TYPE_CHECKING:
    from vecsweep.engine.load import Engine

T = TypeVar("T")
PASS = 30  # tokens that take as long as to read the weights once more, measured on CPUs
# So many tokens whose keys and values a pass holds count as one that runs. With 8, passes of few
# tokens after many are up to a tenth faster, and the keys and values take three times as much.
CACHED = 2
# How torch, on CPUs, and the libraries behind it say that there is no memory left; the last is oneDNN,
# with no room for the code that it writes.
SAID = (
    *("can't allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED", "out of memory"),
    "could not create a primitive",
)
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


def keep_memory() -> None:
    """From now on glibc keeps what tensors gave back for those that follow; elsewhere nothing changes.

    By default each large one comes from the system anew, page by page: up to a sixth of a job's time.
    Not while a model is loaded or gathered from shards: of pieces of ever other sizes little fits.
    """
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(MMAP_MAX, 0)
        allocator.mallopt(TRIM_THRESHOLD, -1)


def no_memory(error: Exception) -> bool:
    """Whether an error says that a device, or the process, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def fitted(run: Callable[[], T]) -> T | None:
    """What `run` gives, None if there was not enough memory for it, which is then given back."""
    try:
        return run()
    except Exception as error:
        if not no_memory(error):
            raise
    # Only here: until now the error held the frames, and so the tensors, of what failed.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def at_once(engine: "Engine", tokens: int, run: Callable[[], T]) -> T:
    """What `run` gives of so many tokens that cannot be cut; Problem if there is no memory for them."""
    found = fitted(run)
    if found is None:
        halve(engine, 1, tokens)
        raise AssertionError("what cannot be cut was halved")
    return found


def equal_length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of one length each, at most `batch_tokens` tokens (or one prompt)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for length, equal in itertools.groupby(order, key=lambda i: lengths[i]):
        group = list(equal)
        size = max(1, batch_tokens // max(1, length))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def filled(lengths: Sequence[int]) -> list[int]:
    """To which length each prompt is filled up, so that all of them cost least.

    A pass for each length costs PASS tokens beside those in it.
    """
    counts = sorted(Counter(lengths).items())
    best: list[tuple[int, list[int]]] = [(0, [])]  # of so many lengths: (cost, each one's pass)
    for stop, (length, _) in enumerate(counts, 1):
        prompts, found = 0, []
        for begin in range(stop - 1, -1, -1):  # the lengths that this one's pass takes along
            prompts += counts[begin][1]
            cost, before = best[begin]
            found.append((cost + PASS + prompts * length, before + [length] * (stop - begin)))
        best.append(min(found))
    to = dict(zip((length for length, _ in counts), best[-1][1]))
    return [to[length] for length in lengths]


def weight(tokens: int, before: int) -> int:
    """Tokens of `batch_tokens` that a row takes: those that run, or its share of keys and values.

    `before` are tokens that do not run, whose keys and values the row has a copy of.
    """
    return max(tokens, math.ceil((before + tokens) / CACHED))


def run_batches(
    engine: "Engine",
    lengths: Sequence[int],
    run: Callable[[list[int]], Any],
    weights: Callable[[int], int] = lambda length: length,
) -> Iterator[tuple[list[int], Any]]:
    """(indices of prompts of one length, what `run` makes of them) until all are done.

    As `equal_length_batches` cuts them; `weights(length)` is what one prompt takes of batch_tokens. A
    batch that does not fit in memory is halved, and so are all after it.
    """
    for group in equal_length_batches(lengths, sys.maxsize):
        each = max(1, weights(lengths[group[0]]))
        while group:
            rows = group[: max(1, engine.batch_tokens // each)]
            found = fitted(partial(run, rows))
            if found is None:
                halve(engine, len(rows), len(rows) * each)
                continue
            yield rows, found
            group = group[len(rows) :]


def halve(engine: "Engine", passes: int, tokens: int) -> None:
    """Halve batch_tokens after a pass of so many tokens failed; Problem if it cannot be less.

    `passes` is the number of prompts and variants in it. So it is with several processes: the
    others wait in a sum that the failed one has left, and cannot be told.
    """
    smaller = max(1, min(engine.batch_tokens, tokens) // 2)
    where = f"{engine.name}: {tokens} tokens at a time do not fit in memory"
    alone = engine.sharding == "single"
    if passes <= 1:
        more = "shards: 2" if alone else "more shards"
        raise Problem(f"{where}, and cannot be cut; give the job more memory, or write {more}")
    if not alone:
        raise Problem(f"{where}; write batch_tokens: {smaller}, or more shards")
    engine.batch_tokens = smaller
    print(
        f"{where}; goes on with {smaller}; batch_tokens: {smaller} in the config spares the attempt",
        file=sys.stderr,
        flush=True,
    )
