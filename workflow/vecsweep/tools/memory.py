"""Peak host memory of each process while a model is loaded.

Makes a random BLOOM of half a billion parameters in eight bfloat16 files in a temporary folder,
loads it as the stages do, runs a prompt, and prints a table; with --preshard also what stage
preshard takes to write the slices, and a start from them. Anonymous memory is what cannot be
dropped; resident memory has the pages of mapped files too, which all processes of a node share.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 2**20
SIZES = {"hidden_size": 1536, "n_layer": 16, "n_head": 16, "vocab_size": 32000}
FILES = "140MB"


def memory() -> tuple[int, int]:
    """Bytes of this process's anonymous and whole resident memory now."""
    status = Path("/proc/self/status").read_text()
    keys = ("RssAnon:", "VmRSS:")
    return tuple(1024 * int(status.partition(key)[2].split()[0]) for key in keys)


class Peak:
    """The largest `memory()` while the block runs, sampled every 2 ms: `.bytes`."""

    def __enter__(self):
        self.bytes, self._done = memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.002):
            self.bytes = tuple(map(max, self.bytes, memory()))

    def __exit__(self, *failure):
        self._done.set()
        self._thread.join()


def save(folder: Path) -> None:
    """Write the random model in hub format, and a model.json beside it."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model("bloom", **SIZES)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.save_pretrained(folder / "weights", max_shard_size=FILES)
    description = {"model": "random", "family": "bloom", "dtype": "bfloat16", "weights": "weights"}
    description |= {"revision": None, "sha256": "random"}
    description["parameters"] = sum(p.numel() for p in model.parameters())
    (folder / "model.json").write_text(json.dumps(description))


def measure(folder: Path, shards: int, engine: str, way: str) -> None:
    """Load the model as one of `shards` processes and write what that took into the folder."""
    import torch
    import transformers

    from vecsweep.engine import forward, load, sharded, slices
    from vecsweep.files import read_json, write_json
    from vecsweep.stages import preshard

    torch.set_num_threads(1)
    if shards > 1:
        sharded.start()
    path, ready = folder / "model.json", folder / f"{shards}-{engine}"
    how = {"batch_tokens": 64, "shards": shards}
    with torch.device("meta"):  # what is imported for it is no part of loading
        config = transformers.AutoConfig.from_pretrained(folder / "weights")
        transformers.AutoModelForCausalLM.from_config(config)
    before, start = memory(), time.monotonic()
    with Peak() as peak:
        if way == "write":
            options = {"model": path, "output": ready, "engine": engine, "offload": False}
            preshard.run(argparse.Namespace(**options, **how))
            held = slices.file_of(ready, sharded.process()).stat().st_size
        else:
            options = {"wanted": engine, "ready": ready if way == "start" else None}
            loaded = load.load(read_json(path), path, **options, **how)
            held = sharded.bytes_held(loaded.model)
        seconds = time.monotonic() - start
        if way != "write":
            forward.last_token_states(loaded, [[[1, 2, 3, 4]]])
    anonymous, resident = (b - a for a, b in zip(before, peak.bytes))
    found = {"seconds": seconds, "held": held, "anonymous": anonymous, "resident": resident}
    write_json(found, folder / f"process-{sharded.process()}.json")
    if shards > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def found_by(folder: Path, shards: int, engine: str, way: str) -> list[dict]:
    """What each process found."""
    command = [sys.executable, "-m"]
    if shards > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(shards), "-m"]
    command += ["vecsweep", "memory", "--process-of", str(folder)]
    command += ["--shards", str(shards), "--engine", engine, "--way", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads((folder / f"process-{i}.json").read_text()) for i in range(shards)]


def arguments(parser):
    counts = {"type": int, "nargs": "+", "default": [1, 2, 4]}
    parser.add_argument("--shards", dest="counts", **counts, help="processes, [1 2 4]")
    parser.add_argument("--engine", default="auto", help="auto, tensor or zero; for several shards")
    parser.add_argument("--preshard", action="store_true", help="slices too: written, started from")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--process-of", type=Path, help=argparse.SUPPRESS)


def run(args):
    """Measure each way with each number of processes; print the table."""
    if args.process_of:
        measure(args.process_of, args.counts[0], args.engine, args.way)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        weights = sorted((folder / "weights").glob("*.safetensors"))
        parameters = json.loads((folder / "model.json").read_text())["parameters"]
        tensor = 2 * SIZES["vocab_size"] * SIZES["hidden_size"]  # the embedding
        print(
            f"{parameters / 1e6:.0f} M parameters, {2 * parameters / MIB:.0f} MiB in "
            f"{len(weights)} bfloat16 files; the largest tensor {tensor / MIB:.0f} MiB\n"
        )
        names = ["shards", "way", "a process's part, MiB", "peak, anonymous", "peak, resident"]
        names += ["allowed", "seconds"]
        print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
        slices = ("write", "start") if args.preshard else ()
        ways = [(n, way) for n in args.counts for way in ("load", *(slices if n > 1 else ()))]
        for shards, way in ways:
            found = found_by(folder, shards, args.engine if shards > 1 else "auto", way)
            worst = max(found, key=lambda process: process["resident"])
            allowed = 1.2 * worst["held"] + tensor
            numbers = [worst["held"], worst["anonymous"], worst["resident"], allowed]
            cells = [f"{number / MIB:.0f}" for number in numbers]
            print(
                f"| {shards} | {way} | {' | '.join(cells)} | {worst['seconds']:.1f} |", flush=True
            )
