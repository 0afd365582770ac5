"""What the tests compare, computed by one process or by every process of a sharded one.

    torchrun --nproc-per-node 2 processes.py PLAN

PLAN is JSON: `prompts` (token ids), `output` (a folder), and `models`, pairs of (name, engine)
with the path of the model's model.json; for those in `compute` all is computed. An engine may be
"zero offload", or one with " ready" after it, for a start from what stage preshard writes to
OUTPUT/NAME-ENGINE. Each process writes OUTPUT/NAME-ENGINE-PROCESS.pt. Many models run in one process
group, since imports take long.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.engine import edits, forward, launch, load, proof, sharded
from vecsweep.engine.edits import Edit
from vecsweep.engine.readout import Readout
from vecsweep.files import read_json
from vecsweep.methods.parts import neuron_parts
from vecsweep.stages import preshard

BATCH_TOKENS = 16  # two prompts at a time at most


def edits_of(layers: int, d_model: int) -> dict[str, Edit]:
    """Interventions from each start layer, and removals as stage ablations makes them."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, d_model, generator=generator)
    zero = torch.zeros(1, d_model)
    made = {}
    for start in (0, 1):
        above = range(start, layers)
        for mode, position in (("replace", "all"), ("add", "all"), ("replace", "last")):
            edit = Edit(dict.fromkeys(above, vectors), mode, position)
            made[f"{mode} {position} from {start}"] = edit
        for sublayer in ("ffn", "attention"):
            nothing = dict.fromkeys(above, zero)
            made[f"no {sublayer} from {start}"] = Edit(nothing, sublayer=sublayer)
    made["mean instead of ffn 1"] = Edit({1: vectors[:1] / 3})
    return made


def compute(engine, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Name -> tensor [..., d_model]: states, edited runs and the parts of each FFN's update."""
    found = forward.last_token_states(engine, [prompts])
    layers, d_model = len(engine.blocks), engine.model.config.hidden_size
    for clean in edits.clean_runs(engine, prompts, 2):
        place = f"prompts {clean.rows}"
        found[f"clean, {place}"] = clean.last.cpu()
        for name, edit in edits_of(layers, d_model).items():
            found[f"{name}, {place}"] = edits.resume(engine, clean, edit).cpu()
    for clean in edits.clean_runs(engine, prompts, 2, last_only=True):
        place = f"last token of prompts {clean.rows}"
        for (sublayer, layer), given in clean.outputs.items():
            found[f"{sublayer} {layer}, {place}"] = given.cpu()
            edit = Edit({layer: given.flip(0)}, "replace", "last", sublayer)
            found[f"{sublayer} {layer} turned, {place}"] = edits.resume(engine, clean, edit).cpu()
    for layer in range(layers):
        parts, constant = neuron_parts(engine, layer, prompts[0])
        found[f"parts.{layer}"], found[f"constant.{layer}"] = parts, constant
    return found


def load_described(path, shards: int, engine: str, folder=None):
    """The proven engine of a model.json; `folder` is for what preshard writes."""
    path = Path(path)
    engine, _, way = engine.partition(" ")
    how = {"shards": shards, "offload": way == "offload"}
    if way == "ready":
        preshard.run(Namespace(model=path, batch_tokens=1, engine=engine, output=folder, **how))
        how["ready"] = folder
    loaded = load.load(read_json(path), path, BATCH_TOKENS, wanted=engine, **how)
    readout = Readout.load(path.with_name("readout.safetensors")) if loaded.leader else None
    proof.prove(loaded, readout, [3, 4, 5, 6])
    return loaded


def main(plan: dict) -> int:
    torch.set_num_threads(1)
    for name, engine, path in plan["models"]:
        try:
            folder = Path(plan["output"]) / f"{name}-{engine}"
            loaded = load_described(path, plan["shards"], engine, folder)
            found = compute(loaded, plan["prompts"]) if name in plan["compute"] else {}
            found["held"] = {n: p.clone() for n, p in sharded.parts_of(loaded.model).items()}
            found["bytes"] = torch.tensor(sharded.bytes_held(loaded.model))
            del loaded
        except Problem as problem:
            found = {"problem": str(problem)}
        torch.save(found, Path(plan["output"]) / f"{name}-{engine}-{sharded.process()}.pt")
    return 0


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    launch.as_process(lambda: main(plan))
