"""The variants that `vecsweep bench` runs in turn: ours, and those that it is measured against.

Each takes how many prompts to run together, and gives its ranks as a flat list (the floor: none).
"""

import copy
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from vecsweep import Problem, tasks
from vecsweep.engine import load
from vecsweep.engine.decoding import decode
from vecsweep.engine.forward import first, hooks, last_token_states, run_decoder, shared_prefix
from vecsweep.engine.plans import Plan, run_plans
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.engine.sources import weights_folder
from vecsweep.files import PACKAGE, read_json, write_tensors
from vecsweep.stages import prompts
from vecsweep.stages.ablations import PAPER, STEPS, ablate, removed_layers
from vecsweep.stages.lens import TOP_K, sites
from vecsweep.tasks.rows import all_answers, prompt_groups
from vecsweep.tools import bench_peers
from vecsweep.tools.bench_peers import at, padded, ranks_of

TASK = PACKAGE / "tasks" / "capitals.yaml"
# Random weights in the shape of: (model type, what differs from the type's own defaults).
SHAPES = {
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "llama2-7b": ("llama", {"max_position_embeddings": 4096}),
}
SHARED, OWN = 22, (3, 6)  # tokens of made-up prompts: all share the first ones
# Asks glibc for what `batches.keep_memory` does.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
NAMES = ("decoder", "blocks", "ffn_norm", "final_norm", "head")


def core_speed(dtype: torch.dtype, size: int = 1536, tries: int = 5) -> float:
    """GFLOP/s of one thread that multiplies square matrices, at its best of a few tries."""
    left, right = torch.randn(2, size, size).to(dtype)
    torch.set_num_threads(1)
    took = []
    for _ in range(tries):
        start = time.perf_counter()
        left @ right
        took.append(time.perf_counter() - start)
    return 2 * size**3 / min(took) / 1e9


@dataclass
class Subject:
    """A model to measure, and where peers find it; `rows(prompt sets, demonstrations, pairs)`."""

    name: str
    engine: load.Engine
    readout: Readout
    rows: Callable[..., list[dict]]
    folder: Path  # in hub format

    @property
    def names(self) -> dict:
        return {name: getattr(self.engine.family, name) for name in NAMES}


def swept(results: Path, name: str) -> Subject:
    """A model that stage models described, on the CPU; Problem if there is none, or for parallel blocks."""
    path = results / "models" / name / "model.json"
    if not path.is_file():
        raise Problem(f"no {path}; run `make` first, or name another --model")
    description = read_json(path)
    if description["parallel_blocks"]:
        raise Problem(f"{name} has parallel blocks, and with them no mid-block state to compare")
    engine = load.load(description, path, 2048)
    engine.model.to("cpu")  # where the peers run, also beside a GPU
    tokenizer = prompts.Reader.of(path, path.with_name("tokenizer.json")).tokenizer
    task = tasks.load(TASK)

    def rows(prompt_sets, demonstrations, pairs):
        settings = {"demonstrations": demonstrations, "seed": 0, "max_prompts": pairs}
        found = prompts.build(task, tokenizer, settings, description["context"])
        return [r for r in found if r["dropped"] is None and r["prompt_set"] in prompt_sets]

    readout = Readout.load(path.with_name("readout.safetensors"))
    return Subject(name, engine, readout, rows, weights_folder(description, path))


def shaped(name: str, folder: Path, on: str = "cpu") -> Subject:
    """Random weights in a shape of SHAPES, saved for the peers; on a GPU in bfloat16 and unsaved."""
    kind, sizes = SHAPES[name]
    config = transformers.AutoConfig.for_model(kind, bos_token_id=0, eos_token_id=0, **sizes)
    torch.manual_seed(0)
    with torch.device(on):
        dtype = torch.float32 if on == "cpu" else torch.bfloat16
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    if on == "cpu":
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    load.fuse(model)  # as when it is loaded
    engine = load.engine_of(model, 2048, name)

    def rows(prompt_sets, demonstrations, pairs):
        draw, most = random.Random(0), config.vocab_size - 1
        beginning = [draw.randint(1, most) for _ in range(SHARED)]
        shared = {"template": 0, "demonstrations": "", "prompt_set": prompt_sets[0]}
        return [
            shared
            | {
                "prompt_id": number,
                "token_ids": beginning + [draw.randint(1, most) for _ in range(draw.randint(*OWN))],
                "argument_token": draw.randint(1, most),
                "answer_tokens": [draw.randint(1, most)],
            }
            for number in range(pairs)
        ]

    norm = at(model, engine.family.final_norm)
    tensors = {"norm.weight": norm.weight.float() + engine.family.norm_offset}
    if getattr(norm, "bias", None) is not None:
        tensors["norm.bias"] = norm.bias.float()
    tensors["head.weight"] = at(model, engine.family.head).weight
    layered = isinstance(norm, torch.nn.LayerNorm)
    epsilon = norm.eps if layered else norm.variance_epsilon
    notes = {"norm": "layer" if layered else "rms", "epsilon": repr(epsilon)}
    write_tensors(tensors, folder / "readout", notes)
    readout = Readout.load(folder / "readout").to(engine.device)
    return Subject(name, engine, readout, rows, folder)


def tokenizer():
    """A tokenizer of two words: the peers want one, and read token ids."""
    from tokenizers import Tokenizer, models

    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="a", pad_token="a", unk_token="a"
    )


def ours(subject: Subject, rows: list[dict]):
    """Stages states and lens, without their files."""
    engine, targets = subject.engine, target_tokens(rows)

    def run(batch):
        _room(engine, rows, batch)
        states = last_token_states(engine, prompt_groups(rows))
        tensors = [
            tensor.to(engine.device)
            for layer in range(len(engine.blocks))
            for _, tensor in sites(states, layer, engine.parallel)
        ]
        several = [ids.repeat(len(tensors), 1).to(engine.device) for ids in targets]
        with torch.inference_mode():
            unit = len(rows) * len(tensors) // len(engine.blocks)  # as stage lens
            found = decode(subject.readout, torch.cat(tensors), several, TOP_K, unit=unit)
        # [site][prompt][target] -> [site][target][prompt], as `bench_peers.lens` has them
        return found.rank.view(len(tensors), len(rows), -1).transpose(1, 2).flatten().tolist()

    return run


class Hooks(bench_peers.Hooks):
    """Plain hooks whose logits are float32, as ours are, in a model of any dtype."""

    def __init__(self, subject: Subject):
        super().__init__(subject.names, model=subject.engine.model)
        self.weight = head_of(subject).weight.float()

    def logits(self, states):
        normed = at(self.model, self.names["final_norm"])(states.float())
        return torch.nn.functional.linear(normed, self.weight)


def plain(subject: Subject, rows: list[dict]):
    """The same with plain hooks in batches, nothing shared."""
    peer = Hooks(subject)
    return lambda batch: bench_peers.lens(peer, rows, batch, subject.engine.device)


def floor(subject: Subject, rows: list[dict]):
    """Each token's forward once, and the float32 product of as many states with the LM head.

    No state is kept and no logit looked at; the product's pieces stay near a core's cache.
    """
    engine = subject.engine
    weight = head_of(subject).weight.float()
    states = torch.randn(2 * len(engine.blocks) * len(rows), weight.shape[1], device=engine.device)
    piece = torch.empty(512, 4096, device=engine.device)
    rests = []
    for tokens in prompt_groups(rows):
        prefix = shared_prefix(tokens)
        beginning = torch.tensor([tokens[0][:prefix]], device=engine.device)
        rests.append((beginning, [{"token_ids": row[prefix:]} for row in tokens]))

    def run(batch):
        with torch.inference_mode():
            for beginning, rest in rests:
                cache = None
                if beginning.numel():
                    cache = run_decoder(engine, beginning, use_cache=True).past_key_values
                for _, ids, _ in padded(rest, batch, engine.device):
                    past = copy.deepcopy(cache)
                    if past is not None:
                        past.batch_repeat_interleave(len(ids))
                    run_decoder(engine, ids, past, beginning.shape[1])
            for some in states.split(piece.shape[0]):
                for part in weight.split(piece.shape[1]):
                    torch.mm(some, part.T, out=piece[: len(some), : len(part)])
        return []

    return run


def bare(subject: Subject, rows: list[dict]):
    """The decoder's forward of all tokens, and nothing else."""
    engine = subject.engine

    def run(batch):
        with torch.inference_mode():
            for _, ids, _ in padded(rows, batch, engine.device):
                engine.decoder(input_ids=ids, use_cache=False)
        return []

    return run


def resumed(subject: Subject, rows: list[dict], vector):
    """An o-vector from every start layer to the last, by stage interventions."""
    engine, answers = subject.engine, all_answers(rows)
    last = len(engine.blocks) - 1
    plans = [Plan(start, last, "replace", "all", vector, [{}]) for start in range(last + 1)]

    def run(batch):
        _room(engine, rows, batch)
        found = {}
        for outcome in run_plans(engine, subject.readout, rows, plans, answers):
            ranks = [outcome[f"{name}_rank_after"] for name in ("argument", "answer")]
            found[outcome["start_layer"], outcome["prompt_id"]] = ranks
        return [
            rank for s in range(last + 1) for row in rows for rank in found[s, row["prompt_id"]]
        ]

    return run


def full_resumed(subject: Subject, rows: list[dict], vector):
    """The same by a whole forward of all prompts for each start layer."""
    layers = range(len(subject.engine.blocks))

    def run(batch):
        ranks = []
        for start in layers:
            ranks += edited(subject, rows, batch, layers[start:], vector, ("argument", "answer"))
        return ranks

    return run


def ablated(subject: Subject, rows: list[dict]):
    """FFNs removed from the top down by sixths, by stage ablations."""

    def run(batch):
        _room(subject.engine, rows, batch)
        outcomes = ablate(subject.engine, subject.readout, rows, [PAPER], 0)
        found = {(o["step"], o["prompt_set"], o["prompt_id"]): o["rank"] for o in outcomes}
        return [
            found[step, row["prompt_set"], row["prompt_id"]]
            for step in range(STEPS + 1)
            for row in rows
        ]

    return run


def full_ablated(subject: Subject, rows: list[dict]):
    """The same by a whole forward of all prompts for each step."""
    layers, zero = len(subject.engine.blocks), torch.zeros(1)

    def run(batch):
        ranks = []
        for step in range(STEPS + 1):
            removed = removed_layers(layers, step, PAPER[2], 0)
            ranks += edited(subject, rows, batch, removed, zero, ("answer",))
        return ranks

    return run


def edited(subject, rows, batch: int, layers, vector, targets: tuple) -> list[int]:
    """Ranks of the targets, prompt by prompt, with the FFNs of `layers` replaced by a vector."""
    engine = subject.engine

    def replace(module, args, output):
        new = vector.to(first(output)).expand_as(first(output)).clone()
        return (new, *output[1:]) if isinstance(output, tuple) else new

    found: dict[int, tuple] = {}
    edits = [engine.part(layer, "ffn").register_forward_hook(replace) for layer in layers]
    with torch.inference_mode(), hooks(edits):
        for places, ids, last in padded(rows, batch, engine.device):
            hidden = engine.decoder(input_ids=ids, use_cache=False).last_hidden_state
            logits = head_of(subject)(hidden[torch.arange(len(ids)), last])
            ranks = ranks_of(logits, [rows[i] for i in places], targets)
            found.update(zip(places, zip(*ranks)))
    return [rank for i in range(len(rows)) for rank in found[i]]


def head_of(subject: Subject) -> Any:
    return at(subject.engine.model, subject.engine.family.head)


def o_vector(engine, row: dict) -> torch.Tensor:
    """An FFN update at two thirds of the depth [1, d_model]."""
    layer = 2 * len(engine.blocks) // 3
    return last_token_states(engine, [[row["token_ids"]]])[f"ffn_out.{layer:02d}"].float()


def _room(engine, rows: list[dict], batch: int) -> None:
    """Give the engine room for `batch` prompts together."""
    engine.batch_tokens = batch * max(len(row["token_ids"]) for row in rows)


class Peer:
    """A peer in its own environment, its model loaded once: call it with batch and threads."""

    def __init__(self, name: str, python: Path, subject: Subject, rows: list[dict], threads: int):
        keys = ("token_ids", "argument_token", "answer_tokens")
        request = {"peer": name, "folder": str(subject.folder), "names": subject.names}
        request |= {"threads": threads, "prompts": [{k: row[k] for k in keys} for row in rows]}
        self.name, self.log = name, tempfile.TemporaryFile("w+")
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(request, file)
            file.flush()
            self.process = subprocess.Popen(
                [python, bench_peers.__file__, file.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env=os.environ | KEPT,
            )
            self.versions = self._answer()["versions"]

    def __call__(self, batch: int, threads: int) -> tuple[float, list[int]]:
        """(seconds, ranks) of a run."""
        self.process.stdin.write(json.dumps({"batch": batch, "threads": threads}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["ranks"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines() or ["it said nothing"]
            raise Problem(f"{self.name} ended: {said[-1]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def timed(run: Callable, engine) -> Callable:
    """A variant of this process as a peer is called: (batch, threads) -> (seconds, ranks)."""

    def call(batch, threads):
        torch.set_num_threads(threads)
        wait = torch.cuda.synchronize if engine.device.type == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        ranks = run(batch)
        wait()
        return time.perf_counter() - start, ranks

    return call
