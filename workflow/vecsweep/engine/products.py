"""Which library multiplies float32 matrices on the CPU."""

import functools
import math
from pathlib import Path

import torch

# Shapes of the check (rows, terms, columns): a block of states, a few tokens, one.
CHECKED = ((256, 640, 2048), (12, 640, 512), (1, 256, 256))
# Terms that are summed at a time: the sum of a few can miss by less than the sum of many.
TERMS = 1024


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
