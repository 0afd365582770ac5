"""One GPU against the CPU: the same states and edited runs, in float32 and bfloat16."""

import time

import processes
import pytest
import torch

import tiny
from vecsweep.engine import gpu, load

PROMPTS = [[9, 8, 7, 6, 5, last, 4] for last in (10, 11, 12)] + [[9, 8, 7, 6, 5, 4, 44, 45]]
# Relative to the largest entry; bfloat16 keeps 8 bits, and each device rounds in its own order.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def full_precision():
    """Float32 products in float32, which stages leave as torch's default too."""
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_gpu_equals_cpu(kind, dtype, record_property):
    found = {}
    for device in ("cpu", "cuda"):
        engine = load.engine_of(tiny.model(kind).to(device, dtype), processes.BATCH_TOKENS)
        start = time.monotonic()
        found[device] = processes.compute(engine, PROMPTS)
        record_property(f"{device} seconds", time.monotonic() - start)
    assert found["cpu"].keys() == found["cuda"].keys()
    for name, expected in found["cpu"].items():
        off = (found["cuda"][name].float().cpu() - expected.float()).abs().max()
        assert off <= TOLERANCE[dtype] * max(expected.float().abs().max().item(), 1), name


def test_report_of_gpu_memory(capsys):
    held = torch.zeros(10**7, device="cuda")
    gpu.report()
    ((used, whole),) = gpu.found(capsys.readouterr().err)
    assert held.nbytes // 10**6 <= used < whole
