# mypy: disable-error-code="assignment, call-arg, var-annotated"
"""One pass over a block of approximate logits while it is in cache, as machine code (Numba).

What it counts and picks is exact: a token whose approximate logit lies within its error bound of
what it is compared with is computed anew in float64.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

PART = np.float32(0.002)  # rounding to bfloat16 changes a number by up to 2^-9 of itself
FAINT = np.float32(-80)  # e^-80 does not count beside 1, and what is smaller is slow
FEW = 16  # of a row, from which the size of the others is guessed
STEEP = np.float32(80)  # float32 holds the sum of a piece of e^80, not of much more
PIECE = 128  # tokens that are looked at together; most pieces hold none that is in doubt
LANES = 16  # numbers that are compared by one instruction
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
def lengths_of(weight, out):
    """The length of each row of a float32 weight, and of what bfloat16 leaves of it: out [2, rows]."""
    for row in range(len(weight)):
        whole, left = 0.0, 0.0
        for value in weight[row]:
            bits = np.float32(value).view(np.uint32)
            to_even = np.uint32(0x7FFF) + np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint32(np.uint32(bits + to_even) & np.uint32(0xFFFF0000)).view(np.float32)
            whole += np.float64(value) * np.float64(value)
            left += np.float64(value - rounded) ** 2
        out[0, row], out[1, row] = np.sqrt(whole), np.sqrt(left)


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
    """e^x for -80 <= x <= 80 to 2e-7 relative, in a form that runs 16 at a time."""
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
def largest(values, known):
    """The largest value, or `known` if none is larger."""
    for value in values:
        known = max(known, value)
    return known


@compiled
def size_of(values):
    """The largest absolute value that is finite."""
    size = 0.0
    for value in values:
        if np.isfinite(value) and abs(value) > size:
            size = abs(value)
    return np.float32(size)


@compiled
def summed(line, cap):
    """(the largest (capped) logit of a row, the sum of exponentials beside it)."""
    most = np.float32(largest(line, -np.inf))
    summit, total = capped(most, cap) if cap > 0 else most, 0.0
    for value in line:
        below = (capped(value, cap) if cap > 0 else value) - summit
        total += exponential(below if below > FAINT else FAINT)
    return summit, total


@intrinsic
def flags(typing, line, first, below, over):
    """Bit i is set where line[first + i] lies within below..over, for LANES float32 numbers.

    Numba has no such comparison; one number after the other takes five times as long.
    """

    def build(context, builder, signature, given):
        vector = ir.VectorType(ir.FloatType(), LANES)
        array = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.bitcast(builder.gep(array.data, [given[1]]), vector.as_pointer())
        numbers = builder.load(place, align=4)

        def everywhere(number):
            lanes = ir.Constant(vector, ir.Undefined)
            lanes = builder.insert_element(lanes, number, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(lanes, lanes, zeros)

        bits = builder.and_(
            builder.fcmp_ordered(">=", numbers, everywhere(given[2])),
            builder.fcmp_ordered("<=", numbers, everywhere(given[3])),
        )
        return builder.zext(builder.bitcast(bits, ir.IntType(LANES)), ir.IntType(32))

    return types.uint32(line, types.intp, types.float32, types.float32), build


@intrinsic
def lowest_bit(typing, bits):
    """The place of the lowest bit that is set."""

    def build(context, builder, signature, given):
        return builder.zext(builder.cttz(given[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.int64(types.uint32), build


@compiled
def within(line, below, over, places):
    """How many numbers lie within below..over; their places are written."""
    found = 0
    whole = len(line) // LANES * LANES
    for first in range(0, whole, LANES):
        left = flags(line, first, below, over)
        while left:
            places[found] = first + lowest_bit(left)
            found += 1
            left = np.uint32(left & np.uint32(left - np.uint32(1)))
    for i in range(whole, len(line)):
        if line[i] >= below and line[i] <= over:
            places[found] = i
            found += 1
    return found


@compiled
def pass_over(
    low, whole, row_scales, scales, high, start, weight, bias, norms, cap, states, bounds, best,
    token, peak, total, above, top, top_token, top_approximate,
):  # fmt: skip
    """Count, sum and pick in approximate logits `low` + `high` [n, tokens] of tokens start...

    `low` is the bfloat16 part as its bits (uint16), `whole` that of bytes (int32), to be multiplied
    with `row_scales` [n] and `scales` [tokens]; of no columns where there is none. `high` is the
    float32 part, to which they are added. `weight` [tokens, d_model], `bias` [tokens, or 1];
    `norms` [2, tokens]: of each weight, and of what bfloat16, or bytes, leave of it. `cap`: of the
    soft cap, 0 if there is none; only the sum and its peak know it. `states` [n, d_model] are
    normed, `bounds` [n, 5]: see `error_of`, and up to which difference float64 says that two are
    equal.
    `best` [n, targets] are the exact logits of the `token`s [n, targets].

    Written: `peak`, `total` [n], a (capped) logit and the sum of exponentials beside it. Added to:
    `above` [n, targets], the number of tokens with a larger logit. Brought up to date: `top` [n, k],
    the largest exact logits with their tokens and approximate logits.
    """
    count, width = high.shape
    targets, kept = best.shape[1], top.shape[1]
    longest, longest_rest = norms[0].max(), norms[1].max()
    places = np.empty(PIECE, np.int64)
    one, none, last = np.float32(1), np.float32(0), kept - 1
    for row in range(count):
        line, bits, bound = high[row], low[row], bounds[row]
        tie = bound[4]
        for i in range(len(bits)):
            line[i] += widened(bits[i])
        sums, row_scale = whole[row], row_scales[row]
        for i in range(len(sums)):
            line[i] += np.float32(sums[i]) * (row_scale * scales[i])
        floor = np.float32(top[row, last])
        if top_token[row, last] < 0:  # nothing to compare with yet
            floor = sure_of(line, bits, bound, norms, kept)
        # Exponentials stand beside that of a large logit, the same one whatever else is decoded: to
        # look for the largest of the row takes longer than to sum them all.
        known = largest(best[row], largest(line[:FEW], -np.inf))
        known = np.float32(known if np.isfinite(known) else 0)
        summit = capped(known, cap) if cap > none else known
        # No logit near a target or the top is off by more; what is farther below them than that is
        # off by a millionth of the distance more.
        widest = bound[0] * longest + bound[1] * (longest_rest + PART * longest) + bound[2]
        sizes = STEEP + abs(known) + size_of(best[row])
        sizes += abs(floor) if np.isfinite(floor) else none
        widest = WIDER * (widest + bound[3] * sizes)
        lowest = np.float32(best[row].min()) if targets else np.float32(np.inf)
        everything, steep = 0.0, none
        # Slices, since a loop over one is known to stay inside and runs 16 numbers at a time.
        for first in range(0, width, PIECE):
            piece = line[first : first + PIECE]
            if top_token[row, last] >= 0:
                floor = np.float32(top[row, last])
            matters = min(floor, lowest) - widest
            some, near = none, none
            if cap > none:
                for i in range(len(piece)):
                    beside = capped(piece[i], cap) - summit
                    steep += one if beside > STEEP else none
                    some += exponential(beside if beside > FAINT else FAINT)
                    near += one if piece[i] >= matters else none
            else:
                for i in range(len(piece)):
                    beside = piece[i] - known
                    steep += one if beside > STEEP else none
                    some += exponential(beside if beside > FAINT else FAINT)
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
                for place in places[: within(piece, below, over, places)]:
                    logit, j = piece[place], first + place
                    error = error_of(logit, bits, bound, norms, j)
                    if logit - error > value:
                        above[row, target] += 1
                    elif logit + error >= value and start + j != token[row, target]:
                        exact = dot(states[row], weight[j]) + bias[j % len(bias)]
                        above[row, target] += exact > best[row, target] + tie
            below = floor - widest
            highest = none
            for i in range(len(piece)):
                highest += one if piece[i] >= below else none
            if highest == none:
                continue
            for place in places[: within(piece, below, np.float32(np.inf), places)]:
                logit, j = piece[place], first + place
                if logit + error_of(logit, bits, bound, norms, j) >= floor:
                    exact = dot(states[row], weight[j]) + bias[j % len(bias)]
                    if top_token[row, last] < 0 or exact > top[row, last]:
                        insert(
                            exact, start + j, logit, top[row], top_token[row], top_approximate[row]
                        )
        peak[row], total[row] = summed(line, cap) if steep > none else (summit, everything)
