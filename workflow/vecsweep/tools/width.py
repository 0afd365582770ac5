"""What a layer of BLOOM takes at its true width: loading, states, an edit, early decoding.

Makes random BLOOMs of a few layers in bfloat16 (width 14,336, 112 heads, vocabulary 250,880) in a
temporary folder, runs each step in processes of its own, and prints time and memory: of what is
there once, of a layer, and of all 70 by these. For a quiet machine: two layers take 18 GB of disk and
of memory, early decoding 22 GB; `--part 4` takes a quarter of every size. Two processes hold the
embedding twice, which a smaller `--vocabulary` makes room for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vecsweep import Problem
from vecsweep.terminal import at_least
from vecsweep.tools.memory import Peak, memory

WIDTH, HEADS, VOCABULARY, LAYERS = 14336, 112, 250880, 70
STEPS = ("loading", "states", "edit", "decoding")
TOKENS = 20  # of a prompt
SEED = 0


def arguments(parser):
    parser.add_argument(
        "--part", type=at_least(1), default=1, help="divide width, heads, vocabulary [1]"
    )
    words = {"type": at_least(1), "default": VOCABULARY, "help": f"before that [{VOCABULARY}]"}
    parser.add_argument("--vocabulary", **words)
    help_layers = "of two models; of one: its own numbers alone [1 2]"
    parser.add_argument("--layers", type=at_least(1), nargs="+", default=[1, 2], help=help_layers)
    parser.add_argument("--shards", type=at_least(1), default=1, help="processes of a model [1]")
    parser.add_argument("--engine", default="auto", help="auto, tensor or zero; of several shards")
    parser.add_argument(
        "--prompts", type=at_least(1), default=16, help=f"of {TOKENS} tokens each [16]"
    )
    parser.add_argument("--threads", type=at_least(1), default=1, help="of each process [1]")
    parser.add_argument("--step", choices=("make", "run", "decoding"), help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)


def make(args) -> None:
    """Write a random model in hub format, its model.json and its readout into the folder."""
    import torch
    import transformers

    from vecsweep.files import write_tensors

    sizes = {"hidden_size": WIDTH // args.part, "n_head": HEADS // args.part}
    sizes |= {"vocab_size": args.vocabulary // args.part, "n_layer": args.layers[0]}
    config = transformers.AutoConfig.for_model("bloom", **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    torch.manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-0.02, 0.02)
            if "norm" in name and name.endswith("weight") or name.endswith("ln_f.weight"):
                parameter.add_(1)
    model.save_pretrained(args.folder / "weights", max_shard_size="5GB")
    description = {"model": "random", "family": "bloom", "dtype": "bfloat16", "weights": "weights"}
    description["parameters"] = sum(p.numel() for p in model.parameters())
    (args.folder / "model.json").write_text(json.dumps(description))
    norm = model.transformer.ln_f
    tensors = {"norm.weight": norm.weight.float(), "norm.bias": norm.bias.float()}
    tensors["head.weight"] = model.lm_head.weight
    write_tensors(tensors, args.folder / "readout.safetensors", {"norm": "layer", "epsilon": 1e-5})


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random prompts that share nothing."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (count, TOKENS), generator=generator).tolist()


def timed(run: Callable[[], Any], before: int, tries: int = 3) -> tuple[Any, list[float]]:
    """(what `run()` gives, [fewest seconds of its tries, most bytes over those before all steps])."""
    seconds, held = [], 0
    for _ in range(tries):
        start = time.perf_counter()
        with Peak() as peak:
            result = run()
            seconds.append(time.perf_counter() - start)
        held = max(held, peak.bytes[1] - before)  # resident: pages of the weights' files too
    return result, [min(seconds), held]


def forwards(args) -> None:
    """Load the model as one of the processes; capture states, run one edit of all its FFNs."""
    import torch
    import transformers

    from vecsweep.engine import edits, forward, load, sharded
    from vecsweep.files import read_json, write_json

    torch.set_num_threads(args.threads)
    if args.shards > 1:
        sharded.start()
    path = args.folder / "model.json"
    with torch.device("meta"):  # what is imported for it is no part of loading
        config = transformers.AutoConfig.from_pretrained(
            args.folder / "weights", trust_remote_code=False
        )
        transformers.AutoModelForCausalLM.from_config(config)
    before = memory()[1]
    found = {}
    engine, found["loading"] = timed(
        lambda: load.load(read_json(path), path, 2048, args.shards, args.engine), before, tries=1
    )
    ids = prompts(args.prompts, config.vocab_size)
    states, found["states"] = timed(lambda: forward.last_token_states(engine, [ids]), before)
    if not all(state.isfinite().all() for state in states.values()):
        raise SystemExit("the random model's states are not finite")
    vector = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(SEED))
    vectors = {layer: vector.bfloat16() for layer in range(len(engine.blocks))}
    clean = [*edits.clean_runs(engine, ids, 1)]
    _, found["edit"] = timed(
        lambda: [edits.resume(engine, run, edits.Edit(vectors)) for run in clean], before
    )
    write_json(found, args.folder / f"process-{sharded.process()}.json")
    if args.shards > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def decoding(args) -> None:
    """Early decoding of as many states as the prompts have: two sites a layer."""
    import torch

    from vecsweep.engine.decoding import decode
    from vecsweep.engine.readout import Readout
    from vecsweep.files import write_json

    torch.set_num_threads(args.threads)
    before = memory()[1]
    generator = torch.Generator().manual_seed(SEED)
    states = torch.randn(2 * args.layers[0] * args.prompts, WIDTH // args.part, generator=generator)
    targets = [torch.full((len(states), 1), token) for token in (1, 2)]
    readout = Readout.load(args.folder / "readout.safetensors")
    # The first try compiles.
    _, found = timed(lambda: decode(readout, states, targets, 10, unit=2 * args.prompts), before)
    write_json({"decoding": found}, args.folder / "decoding.json")


def child(args, folder: Path, layers: int, step: str, shards: int = 1) -> None:
    """Run one step in processes of its own."""
    command = [sys.executable, "-m"]
    if shards > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(shards), "-m"]
    command += ["vecsweep", "width", "--step", step, "--in", str(folder), "--layers", str(layers)]
    command += [str(layers), "--shards", str(shards), "--engine", args.engine]
    for name in ("part", "vocabulary", "prompts", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("vecsweep width: ")]
    if done.returncode and said:
        raise Problem(said[-1].removeprefix("vecsweep width: "))
    if done.returncode:
        raise SystemExit(done.stderr)


def measured(args, layers: int) -> dict[str, tuple[float, float]]:
    """Step -> (seconds, bytes) with so many layers: the slowest process, and what all hold together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child(args, folder, layers, "make")
        child(args, folder, layers, "run", args.shards)
        child(args, folder, layers, "decoding")
        each = [
            json.loads((folder / f"process-{number}.json").read_text())
            for number in range(args.shards)
        ]
        found = {
            step: (max(p[step][0] for p in each), max(p[step][1] for p in each))
            for step in STEPS[:3]
        }
        return found | {"decoding": json.loads((folder / "decoding.json").read_text())["decoding"]}


def rows(few: dict, many: dict, layers: list[int]) -> list[tuple]:
    """(step, seconds once, a layer, of all layers, and the same of GB), by the two models."""
    found = []
    for step in STEPS:
        row = [step]
        for k, unit in ((0, 1), (1, 1e9)):
            each = (many[step][k] - few[step][k]) / (layers[1] - layers[0]) / unit
            once = few[step][k] / unit - layers[0] * each
            row += [once, each, once + LAYERS * each]
        found.append(tuple(row))
    return found


def run(args):
    """Print the table."""
    steps = {"make": make, "run": forwards, "decoding": decoding}
    if args.step:
        return steps[args.step](args)
    if len(args.layers) > 2 or min(args.layers) < 1 or len(set(args.layers)) < len(args.layers):
        raise Problem("--layers takes one number or two different ones, from 1")
    found = [measured(args, layers) for layers in args.layers]
    print(
        f"BLOOM of width {WIDTH // args.part:,}, {HEADS // args.part} heads, vocabulary "
        f"{args.vocabulary // args.part:,}; {args.prompts} prompts of {TOKENS} tokens, {args.shards} "
        f"processes of {args.threads} threads, engine {args.engine}; "
        f"layers: {' and '.join(map(str, args.layers))}\n"
    )
    if len(found) == 1:
        names = ["step", "s", "GB"]
        table = [(step, found[0][step][0], found[0][step][1] / 1e9) for step in STEPS]
    else:
        names = ["step", "s once", "s a layer", f"s, {LAYERS} layers"]
        names += ["GB once", "GB a layer", f"GB, {LAYERS} layers"]
        table = rows(*found, args.layers)
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for step, *numbers in table:
        print(f"| {step} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    print("\nGB are of the process that holds most, its pages of the weights' files included.")
    return None
