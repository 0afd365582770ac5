"""Early decoding of many states at once: exact ranks from products in low precision.

A readout's product of float32 states with a float32 weight is taken in bytes or in bfloat16 where
the processor is fast at that and little stays in doubt. Each approximate logit comes with a proven
bound on its error; what the bounds leave open is computed in float64. So ranks and top tokens are
those of the exact product, whatever the processor, the number of threads and the blocks.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vecsweep import Problem
from vecsweep.engine import fused
from vecsweep.engine.batches import fitted
from vecsweep.engine.products import (
    byte_product,
    fast_bfloat16,
    fast_bytes,
    in_bytes,
    missed,
    product,
    rounding,
)
from vecsweep.engine.readout import Readout

# A block of at most 384 states x 1024 tokens: its logits stay in a core's cache.
ROWS, CHUNK = 384, 1024
# Directions that a block's states share; the quick product is of what these do not explain. More
# leave less in doubt, and cost more: as many as a vector has float32 lanes do best, or twice that.
DIRECTIONS = 16
# Fewer states, or tokens, are over before the weight is in bfloat16.
FEWEST, SMALLEST = 64, 4096
# Where a product leaves more than this share of the tokens in doubt, the next is faster: bytes, then
# bfloat16, then float32. It is tried on some of them.
DOUBT = {"bytes": 0.01, "bfloat16": 0.03}
TRIED = 256
GIVES = {"bytes": torch.int32, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Of wider states bytes leave more in doubt, and the weight takes long to be in bytes.
WIDEST = 2048
# Tokens a state whose logits are known exactly: most of the probability, mostly.
KNOWN = 32
# What an accelerator takes at a time.
DEVICE_ROWS, DEVICE_CHUNK = 2048, 16384


@dataclass
class Decoded:
    """What early decoding says of n states; targets [n, targets], top [n, top_k], among [n, T]."""

    token: torch.Tensor
    rank: torch.Tensor
    probability: torch.Tensor
    top_token: torch.Tensor
    top_probability: torch.Tensor
    among: torch.Tensor


class Block:
    """Up to ROWS normed states [n, d_model], cut into what float32 and what a quick product takes.

    states = coefficients @ directions + rest, the rest rounded to bfloat16 or to bytes: states of one
    place in the model are alike, so it is short, and so is the error of its product.
    """

    def __init__(self, states: torch.Tensor, kind: str, top_k: int = 0):
        n, d_model = states.shape
        lengths = states.double().norm(dim=1)
        own = missed(d_model)
        self.kind, split = kind, kind != "float32"
        self.kept = max(top_k, KNOWN) if split else top_k  # of the largest logits, exactly
        self.scales = torch.zeros(n)
        if split:
            self.directions = shared_directions(states)
            self.coefficients = states @ self.directions.T
            exact = states.double() - self.coefficients.double() @ self.directions.double()
            if kind == "bytes":
                self.rest, self.scales, left = in_bytes(exact.float())
                rest = self.rest.double().norm(dim=1) * self.scales
                # Sums of whole numbers are exact; their scales and the product with them are not.
                summed = 4 * 2.0**-24
            else:
                self.rest = exact.bfloat16()
                left = (exact - self.rest.double()).norm(dim=1)
                rest = self.rest.double().norm(dim=1)
                # Products of bfloat16 are summed in float32, by some processors without rounding up.
                summed = 4 * rounding(d_model)
            explained = self.coefficients.abs().double() @ self.directions.double().norm(dim=1)
            scale = left + summed * rest + (own + rounding(len(self.directions) + 1)) * explained
        else:
            scale, rest = own * lengths, torch.zeros(n)
        self.bounds = torch.zeros(n, 5)
        self.bounds[:, 0] = 1.001 * scale
        self.bounds[:, 1] = 1.001 * rest
        self.bounds[:, 3] = 1e-6  # sums of two and comparisons in float32
        self.lengths = lengths

    def norms(self, readout: Readout) -> torch.Tensor:
        """[2, vocabulary]: the length of each token's weight, and of what the quick product leaves."""
        if self.kind == "bytes":
            return torch.stack([readout.norms[0], readout.in_bytes.left])
        return readout.norms

    def doubt(self, readout: Readout, states: torch.Tensor, best: np.ndarray) -> float:
        """The share of tokens that its bounds leave open beside logits [n, targets], for all targets."""
        tried = slice(None, None, max(1, len(readout.weight) // TRIED))
        logits = states @ readout.weight[tried].T
        if readout.bias is not None:
            logits += readout.bias[tried]
        near = self.bounds[:, :2] @ self.norms(readout)[:, tried] + self.bounds[:, 2:3]
        targets = torch.from_numpy(best).float().T[..., None]  # [targets, n, 1]
        return float(((logits - targets).abs() <= near).double().sum(0).mean())


def shared_directions(states: torch.Tensor) -> torch.Tensor:
    """Up to 16 directions [k, d_model] along which states [n, d_model] have most of their length.

    One power iteration from as many of the states; nothing hangs on how good they are but time.
    """
    start = states[:: max(1, len(states) // DIRECTIONS)][:DIRECTIONS]
    basis = torch.linalg.qr(states.T @ (states @ start.T)).Q
    return basis.T.contiguous()


@torch.inference_mode()
def decode(
    readout: Readout,
    states: torch.Tensor,
    targets: list,
    top_k: int,
    among: torch.Tensor | None = None,
    unit: int | None = None,
) -> Decoded:
    """Rank and probability of target tokens, and the top tokens, for states [n, d_model].

    `targets` is a list of token-id tensors [n, k], padded with -1: several right tokens count as
    one target, by the one with the largest logit. Rank is the number of tokens with a larger
    logit (paper section 2), the logits being exact products of the normed states and the weight.
    Probabilities are within 1e-3 of themselves, and of what a soft cap leaves of the logits; it
    changes no rank. No logits are kept and nothing is sorted.
    `among` [T] are tokens whose natural log probability is wanted in every state. Each `unit` of
    states in a row has the same numbers to the last bit, whatever is decoded beside it. States that
    do not fit in memory together are decoded in halves, if need be cut within a unit. Problem if a
    state holds a number that is infinite or none: it would pass for one whose answer is on top.
    """
    if not states.isfinite().all():
        raise Problem(
            "states to decode hold numbers that are infinite or none: an edit went beyond the model's "
            "dtype; give the model a wider one (dtype: bfloat16 or float32), or leave out large scales"
        )
    if among is None:
        among = torch.empty(0, dtype=torch.long)
    count = len(states)
    if count <= max(1, readout.most):
        found = fitted(lambda: _decode(readout, states, targets, top_k, among, unit))
        if found is not None:
            return found
        if count == 1:
            raise Problem("one state cannot be decoded in this memory; give the job more memory")
        readout.most = count // 2
        print(
            f"decoding {count} states at a time does not fit in memory; goes on with half as many; "
            "more memory for the job spares the attempt",
            file=sys.stderr,
        )
    half = count // 2
    if unit and unit < count:
        half = max(1, half // unit) * unit
    cuts = [slice(0, half), slice(half, count)]
    return _joined(
        [
            decode(readout, states[cut], [ids[cut] for ids in targets], top_k, among, unit)
            for cut in cuts
        ]
    )


def _joined(parts: list[Decoded]) -> Decoded:
    columns = zip(*(vars(part).values() for part in parts))
    return Decoded(*(torch.cat(column) for column in columns))


def _decode(readout, states, targets, top_k, among, unit) -> Decoded:
    if states.device.type != "cpu":
        parts = [
            on_device(readout, states[i : i + DEVICE_ROWS], cut, top_k, among.to(states.device))
            for i in range(0, len(states), DEVICE_ROWS)
            for cut in [[ids[i : i + DEVICE_ROWS] for ids in targets]]
        ]
        return _joined(parts)
    normed = readout.normed(states)
    width = max(ids.shape[-1] for ids in targets)
    tokens = torch.stack(
        [torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1) for ids in targets], 1
    )
    units = range(0, len(normed), unit or max(1, len(normed)))
    sizes = [min(units.step, len(normed) - start) for start in units]
    enough = min(sizes) >= FEWEST and len(readout.weight) >= SMALLEST
    fast = {"bytes": fast_bytes() and normed.shape[1] <= WIDEST, "bfloat16": fast_bfloat16()}
    kinds = [kind for kind in fast if enough and fast[kind]]
    found = Pass(readout, normed, tokens.numpy(), top_k, sizes, kinds).run()
    log_sum = torch.from_numpy(found.log_sum)
    best = torch.from_numpy(readout.capped(found.best))
    top = torch.from_numpy(readout.capped(found.top))
    return Decoded(
        torch.from_numpy(found.token),
        torch.from_numpy(found.above),
        (best - log_sum[:, None]).exp().float(),
        torch.from_numpy(found.top_token[:, :top_k]).clamp(min=0),
        (top[:, :top_k] - log_sum[:, None]).exp().float(),
        (readout.capped(logits_among(readout, normed, among)) - log_sum[:, None]).float(),
    )


def logits_among(readout: Readout, normed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [n, T] of tokens [T], from normed states [n, d_model]."""
    logits = normed @ readout.weight[tokens].T
    return logits if readout.bias is None else logits + readout.bias[tokens]


def on_device(readout, states, targets, top_k, among) -> Decoded:
    """The same by an accelerator in float32, with its own rounding, for up to DEVICE_ROWS states."""
    normed = readout.normed(states)
    rows = torch.arange(len(normed), device=normed.device)
    best_of, token_of = [], []
    for ids in targets:
        value, position = readout.logits_at(normed, ids).max(-1)
        best_of.append(value)
        token_of.append(ids[rows, position])
    best, token = torch.stack(best_of, -1), torch.stack(token_of, -1)

    rank = torch.zeros_like(token)
    log_sum = torch.full((len(normed),), -torch.inf, device=normed.device)
    top = torch.full((len(normed), top_k), -torch.inf, device=normed.device)
    top_token = torch.zeros((len(normed), top_k), dtype=torch.long, device=normed.device)
    for start in range(0, len(readout.weight), DEVICE_CHUNK):
        logits = readout.logits(normed, start, start + DEVICE_CHUNK)
        peak = logits.amax(-1)
        most = readout.capped(peak)
        # Below -80 exp makes denormal numbers, which are slow and do not count beside the peak's 1.
        shifted = (readout.capped(logits) - most[:, None]).clamp_(min=-80)
        log_sum = torch.logaddexp(log_sum, shifted.exp_().sum(-1).log_() + most)
        # Most chunks hold no new top token for most rows.
        new = (peak > top[:, -1]).nonzero().squeeze(-1)
        if len(new):
            value, index = logits[new].topk(min(top_k, logits.shape[-1]), -1)
            value, order = torch.cat([top[new], value], -1).topk(top_k, -1)
            index = torch.cat([top_token[new], index + start], -1)
            top[new], top_token[new] = value, index.gather(-1, order)
        for k in range(token.shape[-1]):
            # The same product summed in another order may exceed itself: a token is not its own rival.
            inside = (
                ((token[:, k] >= start) & (token[:, k] < start + DEVICE_CHUNK))
                .nonzero()
                .squeeze(-1)
            )
            logits[inside, token[inside, k] - start] = best[inside, k]
            rank[:, k] += (logits > best[:, k, None]).sum(-1)
    probability = (readout.capped(best) - log_sum[:, None]).exp()
    top_probability = (readout.capped(top) - log_sum[:, None]).exp()
    chosen = readout.capped(logits_among(readout, normed, among)) - log_sum[:, None]
    return Decoded(token, rank, probability, top_token, top_probability, chosen)


class Pass:
    """One pass of normed states over the vocabulary, chunk by chunk, on as many threads as torch has.

    `sizes` of units that share no product; `kinds` of quick products that blocks may take, beside
    float32, the quickest first.

    Each thread takes whole products alone: many small ones shared by all threads cost more in
    waiting than they gain.
    """

    def __init__(
        self, readout: Readout, normed: torch.Tensor, tokens: np.ndarray, top_k: int, sizes, kinds
    ):
        self.readout, self.states = readout, normed.contiguous()
        self.kinds, self.top_k = [*kinds, "float32"], top_k
        ends = list(itertools.accumulate(sizes))
        # Of like sizes: a block of few states pays as much for its directions as a large one.
        self.places = [
            slice(end - size + size * i // blocks, end - size + size * (i + 1) // blocks)
            for size, end in zip(sizes, ends)
            for blocks in [math.ceil(size / ROWS)]
            for i in range(blocks)
        ]
        self.bias = np.zeros(1, np.float32) if readout.bias is None else readout.bias.numpy()
        exact = np.empty(tokens.shape)
        fused.logits_of(self.states.numpy(), tokens, readout.weight.numpy(), self.bias, exact)
        chosen = exact.argmax(-1)[..., None]
        self.best = np.take_along_axis(exact, chosen, -1)[..., 0]
        self.token = np.take_along_axis(tokens, chosen, -1)[..., 0]
        self.blocks = [self.block(place) for place in self.places]
        self.kept = max(block.kept for block in self.blocks)
        self.starts = range(0, len(readout.weight), CHUNK)
        chunks, n = len(self.starts), len(normed)
        self.peak, self.total = np.empty((chunks, n), np.float32), np.empty((chunks, n))

    def block(self, place: slice) -> Block:
        """The block of some states: of the quickest product that leaves little enough in doubt."""
        states, best, readout = self.states[place], self.best[place], self.readout
        largest = np.where(np.isfinite(best), np.abs(best), 0).max(-1, initial=0)
        for kind in self.kinds:
            block = Block(states, kind, self.top_k)
            block.bounds[:, 2] = 1e-6 * torch.from_numpy(largest)
            block.bounds[:, 4] = states.shape[1] * 2.0**-52 * readout.norms[0].max() * block.lengths
            if kind == "float32" or block.doubt(readout, states, best) <= DOUBT[kind]:
                break
        return block

    def run(self) -> "Pass":
        """The pass itself; its results are `above`, `top`, `top_token`, `log_sum`."""
        found = self.spread(self.share, range(len(self.starts)))
        self.above = sum(above for above, _ in found)
        values, tokens, approximates = (
            np.concatenate([tops[i] for _, tops in found], 1) for i in range(3)
        )
        order = np.lexsort((tokens, -values), axis=1)[:, : self.kept]
        self.top, self.top_token, top_approximate = (
            np.take_along_axis(part, order, 1) for part in (values, tokens, approximates)
        )
        most = self.peak.max(0).astype(np.float64)
        self.sums = self.total * np.exp(self.peak - most)
        # The largest count most, and are known better than they were summed.
        known, capped = np.isfinite(self.top), self.readout.capped
        logits, approximates = (
            capped(np.where(known, values, 0)) for values in (self.top, top_approximate)
        )
        exact, summed = (
            np.exp(np.where(known, values - most[:, None], -np.inf))
            for values in (logits, approximates)
        )
        places = self.top_token // CHUNK, np.arange(len(most))[:, None]
        np.add.at(self.sums, places, exact - summed)
        if any(block.kind != "float32" for block in self.blocks):
            unknown = self.sums.copy()
            np.subtract.at(unknown, places, exact)
            whole = self.sums.sum(0)
            doubtful = self.doubtful(unknown / whole, exact / whole[:, None], logits - approximates)
            self.spread(
                partial(self.again, doubtful, most), np.flatnonzero(doubtful.any(1)).tolist()
            )
        self.log_sum = np.log(self.sums.sum(0)) + most
        return self

    @staticmethod
    def spread(work: Callable, chunks: Sequence[int]) -> list:
        """What `work` returns for a share of the chunks, for as many shares as torch has threads."""
        threads = torch.get_num_threads()
        workers = min(threads, len(chunks))
        shares = [chunks[i::workers] for i in range(workers)]
        if workers < 2:
            return [work(share) for share in shares]
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(work, shares))
        finally:
            torch.set_num_threads(threads)

    @staticmethod
    def doubtful(unknown: np.ndarray, shares: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Which chunks' sums to take anew [chunks, n], lest a probability be off by more than 1e-3.

        `unknown` [chunks, n] are shares of a state's probability beside the tokens that are known
        exactly, `shares` [n, known] those of the known ones, `errors` [n, known] of their logits.

        In doubt are states where some hundred tokens share much of the probability, most of them not
        known: their errors, measured at those that are known, do not cancel as thousands do.
        """
        mass = shares.sum(1)
        typical = np.sqrt((shares * errors**2).sum(1) / np.maximum(mass, 0.05))
        order = np.argsort(-unknown, 0, kind="stable")
        # What is left before each chunk, the heaviest first.
        inside = np.take_along_axis(unknown, order, 0)
        left = inside.sum(0) - np.cumsum(inside, 0) + inside
        needed = np.zeros(unknown.shape, bool)
        np.put_along_axis(needed, order, (mass > 0.05) & (left * typical > 8e-4), 0)
        return needed

    def again(self, doubtful: np.ndarray, most: np.ndarray, chunks: Sequence[int]) -> None:
        """The sums of exponentials of some chunks by a product in float32, for states in doubt."""
        for chunk in chunks:
            start = self.starts[chunk]
            for place in self.places:
                rows = place.start + np.flatnonzero(doubtful[chunk, place])
                if len(rows):
                    logits = self.readout.logits(self.states[rows], start, start + CHUNK)
                    found = torch.logsumexp(self.readout.capped(logits), -1)
                    self.sums[chunk, rows] = np.exp(found.double().numpy() - most[rows])

    def share(self, chunks: Sequence[int]) -> tuple:
        """(counts above the targets, the top) over some chunks of the vocabulary."""
        n, weight = len(self.states), self.readout.weight
        above = np.zeros(self.token.shape, np.int64)
        tops = self.no_tops(n, self.kept)
        own_tops = [self.no_tops(len(block.bounds), block.kept) for block in self.blocks]
        kinds = {block.kind: block for block in self.blocks}
        norms = {kind: block.norms(self.readout) for kind, block in kinds.items()}
        no_bits, no_sums = (np.empty((ROWS, 0), kind) for kind in (np.uint16, np.int32))
        cap = np.float32(self.readout.cap or 0)
        scales = self.readout.in_bytes.scales if "bytes" in kinds else torch.zeros(len(weight))
        # To ask for memory anew for each product takes a twentieth of the time.
        rooms = {kind: torch.empty(ROWS * CHUNK, dtype=GIVES[kind]) for kind in {"float32", *kinds}}
        for chunk in chunks:
            start = self.starts[chunk]
            cut = slice(start, start + CHUNK)
            part = weight[cut]
            bias = self.bias[cut] if len(self.bias) > 1 else self.bias
            if "bytes" in kinds:
                part_in_bytes = self.readout.in_bytes.numbers[cut]
            if "bfloat16" in kinds:
                rounded = part.bfloat16().T
            for place, block, own in zip(self.places, self.blocks, own_tops):
                shape = place.stop - place.start, len(part)
                high, quick = (
                    rooms[kind][: math.prod(shape)].view(shape) for kind in ("float32", block.kind)
                )
                bits, sums = no_bits, no_sums
                if block.kind == "float32":
                    product(self.states[place], part.T, out=high)
                else:
                    # The many rows on the left: the other way round takes half as long again.
                    shared = product(part, block.directions.T)
                    torch.mm(block.coefficients, shared.T, out=high)
                if block.kind == "bytes":
                    sums = byte_product(block.rest, part_in_bytes, out=quick).numpy()
                elif block.kind == "bfloat16":
                    torch.mm(block.rest, rounded, out=quick)
                    bits = quick.view(torch.uint16).numpy()
                if self.readout.bias is not None:
                    high += self.readout.bias[cut]
                fused.pass_over(
                    *(bits, sums, block.scales.numpy(), scales[cut].numpy(), high.numpy()),
                    *(start, part.numpy(), bias, norms[block.kind][:, cut].numpy(), cap),
                    *(self.states[place].numpy(), block.bounds.numpy()),
                    *(self.best[place], self.token[place]),
                    *(self.peak[chunk, place], self.total[chunk, place], above[place]),
                    *own,
                )
        for place, block, own in zip(self.places, self.blocks, own_tops):
            for whole, found in zip(tops, own):
                whole[place, : block.kept] = found
        return above, tops

    @staticmethod
    def no_tops(n: int, kept: int) -> tuple[np.ndarray, ...]:
        """Exact logits, tokens and approximate logits [n, kept] of no token yet."""
        return np.full((n, kept), -np.inf), np.full((n, kept), -1), np.zeros((n, kept), np.float32)
