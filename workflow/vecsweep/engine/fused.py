# mypy: disable-error-code=assignment
"""One pass over a block of approximate logits while it is in cache, as machine code (Numba).

What it counts and picks is exact: a token whose approximate logit lies within its error bound of
what it is compared with is computed anew in float64.
"""

import numpy as np
from numba import njit

PART = np.float32(0.002)  # rounding to bfloat16 changes a number by up to 2^-9 of itself
FAINT = np.float32(-80)  # e^-80 does not count beside 1, and what is smaller is slow
PIECE = 128  # tokens that are looked at together; most pieces hold none that is in doubt
FEW = 16  # those one by one where a piece holds some
WIDER = np.float32(1.00001)  # what a bound of bounds may lose by its own rounding
# Sums may be taken in any order (their rounding is within the bounds); infinities keep their meaning.
LOOSE = {"reassoc", "contract", "nsz", "nnan"}


def compiled(function):
    """Machine code of a function, kept for the next process where there is a place to keep it."""
    try:
        return njit(function, nogil=True, fastmath=LOOSE, cache=True)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(function, nogil=True, fastmath=LOOSE)


@compiled
def dot(a, b):
    """The product of two float32 vectors in float64."""
    total = 0.0
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@compiled
def logits_of(states, tokens, weight, bias, out):
    """Exact logits [n, targets, k] of tokens [n, targets, k]; a token of -1 gives -inf."""
    for row in range(tokens.shape[0]):
        for target in range(tokens.shape[1]):
            for k in range(tokens.shape[2]):
                token = tokens[row, target, k]
                value = -np.inf
                if token >= 0:
                    value = dot(states[row], weight[token]) + bias[token % len(bias)]
                out[row, target, k] = value


@compiled
def exponential(x):
    """e^x for -80 <= x <= 0 to 2e-7 relative, in a form that runs 16 at a time."""
    scaled = x * np.float32(1.4426950408889634)
    whole = np.floor(scaled + np.float32(0.5))
    part = scaled - whole  # in -0.5 .. 0.5; Taylor's series of 2^part
    power = np.float32(1.5403530393381608e-4)
    power = power * part + np.float32(1.3333558146428443e-3)
    power = power * part + np.float32(9.618129107628477e-3)
    power = power * part + np.float32(5.550410866482158e-2)
    power = power * part + np.float32(2.402265069591007e-1)
    power = power * part + np.float32(6.931471805599453e-1)
    power = power * part + np.float32(1.0)
    return power * np.int32((np.int32(whole) + 127) << 23).view(np.float32)


@compiled
def capped(x, cap):
    """cap * tanh(x / cap), to 1e-6 of cap."""
    small = np.float32(-2) * abs(x) / cap
    power = exponential(small if small > FAINT else FAINT)
    value = cap * (np.float32(1) - power) / (np.float32(1) + power)
    return value if x > np.float32(0) else -value


@compiled
def widened(bits):
    """The number that a bfloat16's bits stand for."""
    return np.uint32(np.uint32(bits) << 16).view(np.float32)


@compiled
def insert(value, token, approximate, values, tokens, approximates):
    """Put a token into a row's list, largest first, the lower token first among equals."""
    place = len(values) - 1
    while place > 0 and (
        value > values[place - 1] or (value == values[place - 1] and token < tokens[place - 1])
    ):
        values[place] = values[place - 1]
        tokens[place] = tokens[place - 1]
        approximates[place] = approximates[place - 1]
        place -= 1
    values[place], tokens[place], approximates[place] = value, token, approximate


@compiled
def error_of(logit, bits, bound, norms, j):
    """A bound on the error of an approximate logit of token j, its own roundings included.

    `bits` are those of the bfloat16 parts of the row's logits, if there are any.
    """
    error = bound[0] * norms[0, j] + bound[1] * norms[1, j] + bound[2] + bound[3] * abs(logit)
    return error + PART * abs(widened(bits[j])) if len(bits) else error


@compiled
def sure_of(line, bits, bound, norms, count):
    """What at least `count` tokens of a row reach for sure; -inf if there are fewer."""
    found = np.full(count, -np.inf, np.float32)
    if len(line) >= count:
        for j in range(len(line)):
            value = line[j] - error_of(line[j], bits, bound, norms, j)
            if value > found[count - 1]:
                place = count - 1
                while place > 0 and value > found[place - 1]:
                    found[place] = found[place - 1]
                    place -= 1
                found[place] = value
    return found[count - 1]


@compiled
def size_of(values):
    """The largest absolute value that is finite."""
    largest = 0.0
    for value in values:
        if np.isfinite(value) and abs(value) > largest:
            largest = abs(value)
    return np.float32(largest)


@compiled
def any_within(line, below, over):
    """Whether a number lies within below..over."""
    found = np.float32(0)
    for i in range(len(line)):
        found += np.float32(1) if over >= line[i] >= below else np.float32(0)
    return found > np.float32(0)


@compiled
def pass_over(
    low, high, start, weight, bias, norms, cap, states, bounds, best, token, peak, total, above,
    top, top_token, top_approximate,
):  # fmt: skip
    """Count, sum and pick in approximate logits `low` + `high` [n, tokens] of tokens start...

    `low` is the bfloat16 part as its bits (uint16), of no columns where there is none; `high` the
    float32 part, to which it is added. `weight` [tokens, d_model], `bias` [tokens, or 1]; `norms`
    [2, tokens]: of each weight, and of what bfloat16 leaves of it. `cap`: of the soft cap, 0 if
    there is none; only the sum and its peak know it. `states` [n, d_model] are normed,
    `bounds` [n, 5]: see `error_of`, and up to which difference float64 says that two are equal.
    `best` [n, targets] are the exact logits of the `token`s [n, targets].

    Written: `peak`, `total` [n], the largest (capped) logit and the sum of exponentials beside it. Added to:
    `above` [n, targets], the number of tokens with a larger logit. Brought up to date: `top` [n, k],
    the largest exact logits with their tokens and approximate logits.
    """
    count, width = high.shape
    targets, kept = best.shape[1], top.shape[1]
    longest, longest_rest = norms[0].max(), norms[1].max()
    lanes = np.empty(PIECE, np.float32)
    one, none, last = np.float32(1), np.float32(0), kept - 1
    for row in range(count):
        line, bits, bound = high[row], low[row], bounds[row]
        tie = bound[4]
        # Slices, since a loop over one is known to stay inside and runs 16 numbers at a time.
        lanes[:] = -np.inf
        for first in range(0, width, PIECE):
            piece = line[first : first + PIECE]
            if len(bits):
                some_bits = bits[first : first + PIECE]
                for i in range(len(piece)):
                    piece[i] += widened(some_bits[i])
            for i in range(len(piece)):
                lanes[i] = piece[i] if piece[i] > lanes[i] else lanes[i]
        most = lanes.max()
        floor = np.float32(top[row, last])
        if top_token[row, last] < 0:  # nothing to compare with yet
            floor = sure_of(line, bits, bound, norms, kept)
        # No logit near a target or the top is off by more; what is farther below them than that is
        # off by a millionth of the distance more.
        widest = bound[0] * longest + bound[1] * (longest_rest + PART * longest) + bound[2]
        sizes = abs(most) + size_of(best[row]) + (abs(floor) if np.isfinite(floor) else none)
        widest = WIDER * (widest + bound[3] * sizes)
        lowest = np.float32(best[row].min()) if targets else np.float32(np.inf)
        everything = 0.0
        summit = capped(most, cap) if cap > none else most
        for first in range(0, width, PIECE):
            piece = line[first : first + PIECE]
            if top_token[row, last] >= 0:
                floor = np.float32(top[row, last])
            matters = min(floor, lowest) - widest
            some, near = none, none
            if cap > none:
                for i in range(len(piece)):
                    below = capped(piece[i], cap) - summit
                    below = below if below < none else none
                    some += exponential(below if below > FAINT else FAINT)
                    near += one if piece[i] >= matters else none
            else:
                for i in range(len(piece)):
                    below = piece[i] - most
                    some += exponential(below if below > FAINT else FAINT)
                    near += one if piece[i] >= matters else none
            everything += some
            if near == none:
                continue
            for target in range(targets):
                value = np.float32(best[row, target])
                below, over = value - widest, value + widest
                sure, maybe = none, none
                for i in range(len(piece)):
                    sure += one if piece[i] > over else none
                    maybe += one if piece[i] >= below else none
                above[row, target] += np.int64(sure)
                if maybe == sure:
                    continue
                for part in range(0, len(piece), FEW):
                    few = piece[part : part + FEW]
                    if not any_within(few, below, over):
                        continue
                    for i in range(len(few)):
                        if over >= few[i] >= below:
                            j = first + part + i
                            error = error_of(few[i], bits, bound, norms, j)
                            if few[i] - error > value:
                                above[row, target] += 1
                            elif few[i] + error >= value and start + j != token[row, target]:
                                exact = dot(states[row], weight[j]) + bias[j % len(bias)]
                                above[row, target] += exact > best[row, target] + tie
            below = floor - widest
            if not any_within(piece, below, np.float32(np.inf)):
                continue
            for part in range(0, len(piece), FEW):
                few = piece[part : part + FEW]
                if not any_within(few, below, np.float32(np.inf)):
                    continue
                for i in range(len(few)):
                    j = first + part + i
                    if few[i] + error_of(few[i], bits, bound, norms, j) >= floor:
                        exact = dot(states[row], weight[j]) + bias[j % len(bias)]
                        if top_token[row, last] < 0 or exact > top[row, last]:
                            insert(
                                exact, start + j, few[i],
                                top[row], top_token[row], top_approximate[row],
                            )  # fmt: skip
        peak[row], total[row] = summit, everything
