"""One GPU against the CPU: the same states, edited runs and lens, in float32 and bfloat16.

`make test-gpu` runs these, and writes what it measured to docs/measured/gpu.csv.
"""

import csv
import subprocess
import sys
import time

import processes
import pytest
import torch

import tiny
from conftest import REPO, command, main
from limited import PROMPTS as MANY
from test_ablations import write_prompts
from test_status import jobs_table, write_job
from vecsweep.engine import decoding, edits, forward, gpu, load
from vecsweep.engine.edits import Edit
from vecsweep.engine.readout import Readout
from vecsweep.files import Tensors, read_json
from vecsweep.stages.states import states_of
from vecsweep.tasks.rows import CAPTURED, kept_rows

PROMPTS = [[9, 8, 7, 6, 5, last, 4] for last in (10, 11, 12)] + [[9, 8, 7, 6, 5, 4, 44, 45]]
# Relative to the largest entry; bfloat16 keeps 8 bits, and each device rounds in its own order.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
ENGINES = {"single": 1, "offload": 1, "tensor": 2, "zero": 2}  # -> devices; fewer are refused
COLUMNS = ("what", "family", "dtype", "off", "tolerance", "cpu_seconds", "gpu_seconds", "gpu_mb")
GPU = "cuda"

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision():
    """Float32 products in float32, which stages leave as torch's default too."""
    assert not torch.backends.cuda.matmul.allow_tf32
    torch.cuda.reset_peak_memory_stats()


@pytest.fixture(scope="module")
def measured():
    """measured(column=value, ...): a row of docs/measured/gpu.csv, written at the end."""
    rows = []
    yield lambda **row: rows.append(row)
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    with open(REPO / "docs" / "measured" / "gpu.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*COLUMNS, *device], lineterminator="\n")
        table.writeheader()
        table.writerows(row | device for row in rows)


def timed(compute):
    start = time.monotonic()
    found = compute()
    torch.cuda.synchronize()
    return found, round(time.monotonic() - start, 3)


def peak():
    return torch.cuda.max_memory_allocated() // 10**6


def off(found, expected):
    """The largest difference of any tensor, relative to its largest entry, or to 1."""
    assert found.keys() == expected.keys() and found
    return max(
        ((found[name].float().cpu() - e.float()).abs().max() / max(e.float().abs().max(), 1)).item()
        for name, e in expected.items()
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_gpu_equals_cpu(kind, dtype, measured):
    found, seconds = {}, {}
    for device in ("cpu", GPU):
        engine = load.engine_of(tiny.model(kind).to(device, dtype), processes.BATCH_TOKENS)
        found[device], seconds[device] = timed(lambda: processes.compute(engine, PROMPTS))
    worst = off(found[GPU], found["cpu"])
    row = {"what": "states and edits", "family": kind, "dtype": dtype, "off": worst}
    row |= {"cpu_seconds": seconds["cpu"], "gpu_seconds": seconds[GPU], "gpu_mb": peak()}
    measured(**row, tolerance=TOLERANCE[dtype])
    assert worst <= TOLERANCE[dtype]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine(engine, tiny_model, tmp_path, measured):
    """Stage states through its command, beside one process on the CPU."""
    devices = ENGINES[engine]
    if devices > torch.cuda.device_count():
        pytest.skip(f"{engine} needs {devices} GPUs, here is {torch.cuda.device_count()}")
    model = tiny_model("bloom")
    prompts, output = write_prompts(model, tmp_path), tmp_path / "states.safetensors"
    options = {"model": model.description, "readout": model.readout, "prompts": prompts}
    options |= {"batch_tokens": 64, "shards": devices, "output": output}
    options |= {"engine": engine} if engine != "offload" else {}
    words = [*command("states", **options), *["--offload"] * (engine == "offload")]
    python = [sys.executable, "-m", "vecsweep", *map(str, words)]
    start = time.monotonic()
    done = subprocess.run(python, capture_output=True, text=True, timeout=300)
    took = round(time.monotonic() - start, 3)
    assert done.returncode == 0, done.stderr[-4000:]
    memory = gpu.found(done.stderr)
    assert len(memory) == devices
    found, rows = Tensors(output), kept_rows(prompts, CAPTURED)
    plain = states_of(load.engine_of(model.model, 64), rows, read_json(model.description))
    worst = off({name: found[name] for name in found}, plain)
    row = {"what": f"stage states, {engine}", "family": "bloom", "dtype": torch.float32}
    row |= {"gpu_seconds": took, "gpu_mb": max(used for used, _ in memory)}
    measured(**row, off=worst, tolerance=TOLERANCE[torch.float32])
    assert worst <= TOLERANCE[torch.float32]


def test_lens_on_the_device(measured):
    """Ranks but where two logits are as good as equal, probabilities, and the top tokens."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40_000, 64, generator=generator)
    readout = Readout("rms", 1e-6, torch.ones(64), None, weight, None)
    states = torch.randn(3000, 64, generator=generator)
    targets = [torch.randint(40_000, (3000, 2), generator=generator) for _ in "ab"]
    among = torch.arange(50)
    plain, cpu_seconds = timed(lambda: decoding.decode(readout, states, targets, 5, among))
    there = readout.to(GPU)
    found, seconds = timed(
        lambda: decoding.decode(
            there, states.to(GPU), [ids.to(GPU) for ids in targets], 5, among.to(GPU)
        )
    )
    ranks = found.rank.cpu() - plain.rank
    assert ranks.abs().max() <= 2 and (ranks != 0).float().mean() < 0.01
    assert (found.top_token.cpu() == plain.top_token).float().mean() > 0.999
    torch.testing.assert_close(found.probability.cpu(), plain.probability, rtol=2e-3, atol=1e-9)
    worst = (found.among.cpu() - plain.among).abs().max().item()
    row = {"what": "lens", "dtype": torch.float32, "off": worst, "tolerance": 2e-3}
    measured(**row, cpu_seconds=cpu_seconds, gpu_seconds=seconds, gpu_mb=peak())
    assert worst <= 2e-3


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "gemma3_text"])
def test_halved_until_it_fits_the_device(kind, measured, capsys):
    """Torch may take 40 MB more of the device than it has now."""
    generator = torch.Generator().manual_seed(0)
    edit = Edit({1: torch.randn(150, 32, generator=generator)}, "add")

    def compute(device):
        engine = load.engine_of(tiny.model(kind).to(device), 10**6, kind)
        found = forward.last_token_states(engine, [MANY])
        for clean in edits.clean_runs(engine, MANY[:60], 1):
            for row, state in zip(clean.rows, edits.resume(engine, clean, edit).unbind(1)):
                found[str(row)] = state.cpu()
        return found, engine.batch_tokens

    (plain, _), cpu_seconds = timed(lambda: compute("cpu"))
    compute(GPU)  # so that what its libraries take is there
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    capsys.readouterr()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 40e6) / whole)
    try:
        (found, left), seconds = timed(lambda: compute(GPU))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert left < 10**6 and f"goes on with {left}; " in capsys.readouterr().err
    worst = off(found, plain)
    row = {"what": f"halved to {left} tokens", "family": kind, "dtype": torch.float32}
    row |= {"off": worst, "tolerance": TOLERANCE[torch.float32], "cpu_seconds": cpu_seconds}
    measured(**row, gpu_seconds=seconds, gpu_mb=peak())
    assert worst <= TOLERANCE[torch.float32]


def test_report_of_gpu_memory(capsys):
    held = torch.zeros(10**7, device=GPU)
    gpu.report()
    ((used, whole),) = gpu.found(capsys.readouterr().err)
    assert held.nbytes // 10**6 <= used < whole


def test_columns_of_the_jobs_table(tiny_model, tmp_path, monkeypatch, capsys):
    """From the log of a real stage."""
    model = tiny_model("gpt2")
    options = {"model": model.description, "readout": model.readout, "batch_tokens": 64}
    options |= {"prompts": write_prompts(model, tmp_path), "output": tmp_path / "s.safetensors"}
    capsys.readouterr()
    assert main(command("states", **options)) == 0
    write_job(tmp_path, "states/m/t", 3, 300, capsys.readouterr().err)
    *_, count, used, of, whole = jobs_table(tmp_path, monkeypatch, capsys)["states"]
    assert (count, of) == ("1", "of") and 0 < int(used) < int(whole)
