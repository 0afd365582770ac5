"""Load a model that stage `models` described, ready for forward passes."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from vecsweep import Problem
from vecsweep.engine import checkpoint, importing, products, quantized, sharded, slices
from vecsweep.engine.families import (
    Family,
    family_of,
    is_parallel,
    module_at,
    size_in,
    update_scale,
)
from vecsweep.engine.sources import PLAIN, check_weights, weights_folder
from vecsweep.files import read_json


@dataclass
class Engine:
    """A loaded model and its parts, named as in `families`."""

    model: Any  # a `transformers` causal LM, or what DeepSpeed makes of it
    family: Family
    parallel: bool
    batch_tokens: int
    name: str = "unnamed"  # the model's, in messages
    head_shards: int = 1  # processes that split every layer's heads and neurons; 1 under ZeRO-3
    sharding: sharded.Sharding = "single"
    proof: Any = None  # what `proof.prove` measured
    leader: bool = True  # decodes and writes; the other processes only take part
    shape: tuple[int, int] = (0, 0)  # batch and tokens of the forward that runs
    update_scale: float = 1.0  # of what attention and FFN give, before it is added
    pairs: set[int] = field(default_factory=set)  # layers whose FFN was seen to give a tuple

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def decoder(self) -> torch.nn.Module:
        return module_at(self.model, self.family.decoder)

    @property
    def blocks(self) -> torch.nn.ModuleList:
        return module_at(self.model, self.family.blocks)

    def part(self, layer: int, name: str) -> torch.nn.Module:
        """The `attention`, `ffn`, `ffn_norm`, `bypass` or `down` module of a block, or all of it."""
        if name == "block":
            return self.blocks[layer]
        return module_at(self.blocks[layer], getattr(self.family, name))


def engine_of(model: Any, batch_tokens: int, name: str = "unnamed") -> Engine:
    """An engine around a `transformers` causal LM."""
    family = family_of(model)
    made = Engine(model.eval(), family, is_parallel(family, model.config), batch_tokens, name)
    made.update_scale = update_scale(family, model.config)
    return made


def check(
    model: Path,
    shards: int,
    wanted: sharded.Wanted,
    offload: bool = False,
    ready: Path | None = None,
) -> None:
    """Problem if a model.json's weights, or its slices, are damaged or cannot be split so.

    Looks at little and is done before any process starts.
    """
    description = read_json(model)
    folder = weights_folder(description, model)
    if not ready:
        checkpoint.check_files(folder)
    # The plain file, since transformers takes seconds to import its configs.
    heads = size_in(read_json(folder / "config.json"), "num_attention_heads")
    if heads:
        sharding = sharded.choose(wanted, shards, description["family"], heads, offload)
        if ready:
            for process in range(shards):
                slices.opened(ready, description, sharding, shards, process)


def load(
    description: dict,
    beside: Path,
    batch_tokens: int,
    shards: int = 1,
    wanted: sharded.Wanted = "auto",
    offload: bool = False,
    ready: Path | None = None,
) -> Engine:
    """The engine of a described model, on the GPU if there is one, in the config's dtype.

    `description` is model.json's content, `beside` its path, `wanted` the config's `engine`. With
    several shards the processes that torchrun or srun started each hold a slice (see `sharded`),
    which they read from the folder `ready` if stage preshard wrote it.
    """
    products.use_fastest()
    with importing():
        from transformers import modeling_utils  # noqa: F401 - what its models import
    folder = weights_folder(description, beside)
    if ready:  # the weights are in it
        kept = [line for line in description.get("weights_crc32", []) if line.startswith("config.")]
        check_weights(description | {"weights_crc32": kept}, folder)
    else:
        checkpoint.check_files(folder)
        check_weights(description, folder, sharded.process(), shards)
    dtype = getattr(torch, description["dtype"])
    config = transformers.AutoConfig.from_pretrained(folder, **PLAIN)
    heads = config.num_attention_heads
    sharding = sharded.choose(wanted, shards, description["family"], heads, offload)
    print(f"engine: {sharding}, shards: {shards}", file=sys.stderr)
    try:
        if sharding == "single":
            model = load_single(folder, dtype)
            fuse(model)
            model = model.to("cuda" if torch.cuda.is_available() else "cpu")
            if kind := description.get("quantized"):
                quantized.quantize(model, kind, description["model"])
        else:
            sharded.start()
            weights = (
                slices.opened(ready, description, sharding, shards, sharded.process(), copied=True)
                if ready
                else sharded.checked(config, folder)
            )
            if sharding == "tensor":
                model = sharded.load_tensor(config, dtype, weights)
            else:
                model = sharded.load_zero(config, dtype, weights, offload)
            sharded.report(model, description)
    except Problem:
        raise
    except Exception as error:  # safetensors, transformers and torch each raise their own
        reason = " ".join(str(error).split())
        raise Problem(f"cannot load '{description['model']}' from {folder}: {reason}") from error
    loaded = engine_of(model, batch_tokens, description["model"])
    loaded.sharding = sharding
    loaded.head_shards = shards if sharding == "tensor" else 1
    loaded.leader = sharded.process() == 0
    if loaded.leader and not loaded.family.down:
        print("its FFNs have no one output matrix: no parts by neuron", file=sys.stderr)
    return loaded


def fuse(model: Any) -> None:
    """Take GPT-2's GELU in one pass over memory, not in eight, in a float32 model.

    The same function but for the last bit. In bfloat16 each of the eight rounds, and what a model
    gives is what they give.
    """
    from transformers.activations import NewGELUActivation

    if model.dtype == torch.float32:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, torch.nn.GELU("tanh"))


def load_single(folder: Path, dtype: torch.dtype) -> Any:
    """The causal LM of a folder, in one process; Problem unless files and model fit each other.

    `transformers` itself only warns, and leaves random numbers where a tensor is missing.
    """
    # Its type says nothing of the pair that `output_loading_info` asks for.
    loading: Any = transformers.AutoModelForCausalLM.from_pretrained
    model, found = loading(
        folder,
        dtype=dtype,
        **PLAIN,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused here, by name
    )
    family = family_of(model)
    shapes = {key: (tuple(has), tuple(needs)) for key, has, needs in found["mismatched_keys"]}
    unused = [key for key in found["unexpected_keys"] if not checkpoint.unneeded(family, key)]
    checkpoint.refuse(folder, found["missing_keys"], unused, shapes)
    return model.eval()
