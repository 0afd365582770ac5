"""Products on the CPU: which library takes those in float32, and what is faster and less precise."""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import torch

# Shapes of the check (rows, terms, columns): a block of states, a few tokens, one.
CHECKED = ((256, 640, 2048), (12, 640, 512), (1, 256, 256))
# Terms that are summed at a time: the sum of a few can miss by less than the sum of many.
TERMS = 1024
# Numbers that are mixed before they are rounded to bytes: more make none smaller, and take longer.
MIXED = 16
FAINT = 1e-16  # of the largest number of a row: scales of less would have no product in float32


def rounding(terms: int) -> float:
    """The share by which a float32 sum of so many products, in any order, can miss.

    Of the product of the two vectors' lengths (Higham, Accuracy and Stability, section 3.1).
    """
    return 1.01 * (terms + 2) * 2.0**-24


def missed(terms: int) -> float:
    """The same of what `product` sums piece by piece."""
    return rounding(min(terms, TERMS) + math.ceil(terms / TERMS) - 1)


def product(left: torch.Tensor, right: torch.Tensor, out=None) -> torch.Tensor:
    """left [n, terms] @ right [terms, m] in float32, of pieces of TERMS terms (to `missed`)."""
    out = torch.mm(left[:, :TERMS], right[:TERMS], out=out)
    for start in range(TERMS, left.shape[1], TERMS):
        piece = slice(start, start + TERMS)
        out.addmm_(left[:, piece], right[piece])
    return out


@functools.cache
def use_fastest() -> None:
    """Take oneDNN for float32 products where MKL uses half the processor: AMD's with AVX-512.

    PyTorch hands float32 products to oneDNN only if it may also round them to bfloat16, which
    oneDNN does on processors with AMX alone. So not there; elsewhere it is tried: a product that
    misses by more than float32's rounding changes it back.
    """
    if not (mkl_holds_back() and torch.backends.mkldnn.is_available()):
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if not all(exact(*shape) for shape in CHECKED):
        settings.fp32_precision = before


def mkl_holds_back() -> bool:
    """Whether MKL leaves this processor's widest vectors unused, and oneDNN stays in float32."""
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    able = torch.cpu.get_capabilities()
    return vendor and able.get("avx512_f", False) and not able.get("amx_tile", False)


def exact(rows: int, terms: int, columns: int, dtype=torch.float32) -> bool:
    """Whether a product in `dtype` is as near to the exact one as float32 sums are."""
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(rows, terms, generator=generator)
    right = torch.rand(terms, columns, generator=generator)
    wanted = left.double() @ right.double()
    found = (left.to(dtype) @ right.to(dtype)).double()
    return bool((found - wanted).abs().max() <= rounding(terms) * wanted.max())


def fast_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 faster than in float32."""
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


@functools.cache
def fast_bytes() -> bool:
    """Whether this processor multiplies bytes faster than bfloat16; without VNNI sums overflow."""
    able = torch.cpu.get_capabilities()
    if not (able.get("avx512_vnni", False) or able.get("amx_int8", False)):
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, terms, columns) for rows, terms, columns in CHECKED]
    left, right = (
        [(127 - 254 * torch.randint(2, size, generator=generator)).to(torch.int8) for size in sizes]
        for sizes in ([shape[:2] for shape in shapes], [shape[:0:-1] for shape in shapes])
    )
    return all(
        torch.equal(
            byte_product(a, b, torch.empty(len(a), len(b), dtype=torch.int32)).double(),
            a.double() @ b.double().T,
        )
        for a, b in zip(left, right)
    )


def byte_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """left [n, terms] @ right [m, terms].T of int8, exactly, into int32 [n, m]."""
    return torch._int_mm(left, right.T, out=out)


class Bytes(NamedTuple):
    """Rows [n, terms], mixed, as scales [n] times whole numbers [n, terms] (int8).

    left [n]: the length of what is not in them, or a little more.
    """

    numbers: torch.Tensor
    scales: torch.Tensor
    left: torch.Tensor


def in_bytes(rows: torch.Tensor) -> Bytes:
    """float32 rows [n, terms] as bytes. Products of two that were mixed are those of the rows.

    A few large numbers in a row would leave little of 127 steps to the others: so neighbours are
    mixed by a rotation (as QuaRot does, arXiv 2404.00456).
    """
    mixing = hadamard(math.gcd(rows.shape[1], MIXED))
    found = Bytes(
        torch.empty(rows.shape, dtype=torch.int8), *(torch.empty(len(rows)) for _ in range(2))
    )
    # What the rotation's own rounding, of each of its sums, can miss of a row.
    missed_by = rounding(len(mixing)) * math.sqrt(len(mixing))
    for part, numbers, scales, left in zip(*(t.split(1024) for t in (rows, *found))):
        mixed = (part.unflatten(1, (-1, len(mixing))) @ mixing).flatten(1)
        most = mixed.abs().amax(1)
        scales.copy_(torch.where(most > FAINT, most / 127, 0))
        steps = (mixed * torch.where(most > FAINT, 127 / most, 0)[:, None]).round_()
        numbers.copy_(steps)
        rest, whole = (  # in float64, where no square is too small
            some.norm(dim=1, dtype=torch.float64)
            for some in (mixed - steps * scales[:, None], part)
        )
        left.copy_(1.001 * (rest + missed_by * whole))
    return found


def hadamard(size: int) -> torch.Tensor:
    """Sylvester's rotation of `size` numbers, a power of two: each goes to all, with equal weight."""
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / math.sqrt(size)
