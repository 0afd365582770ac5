"""Load a model that stage `models` described, ready for forward passes."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.engine.families import Family, family_of, is_parallel, module_at


@dataclass
class Engine:
    """A loaded model and its parts, named as in `families`."""

    model: torch.nn.Module
    family: Family
    parallel: bool
    batch_tokens: int
    shards: int = 1  # ranks that split every layer's heads and neurons (tensor parallel)
    sharding: str = "single"
    proof: object = None
    leader: bool = True  # decodes and writes; the other ranks only take part
    shape: tuple[int, int] = (0, 0)  # batch and tokens of the forward that runs

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
        """The `attention`, `ffn`, `ffn_norm` or `bypass` module of a block."""
        return module_at(self.blocks[layer], getattr(self.family, name))


def engine_of(model, batch_tokens: int) -> Engine:
    """An engine around a `transformers` causal LM."""
    family = family_of(model)
    return Engine(model.eval(), family, is_parallel(family, model.config), batch_tokens)


def weights_folder(description: dict, beside: Path) -> Path:
    """The folder with the model's weights, from its model.json and where that stands."""
    folder = Path(beside).parent / description["weights"]
    if not (folder / "config.json").is_file():
        raise Problem(
            f"the weights of '{description['model']}' are gone from {folder}; "
            f"delete {beside} and run again"
        )
    return folder.resolve()


def check(model: Path, shards: int, engine: str, offload=False, ready: Path | None = None) -> None:
    """Problem if a model.json's weights, or its ranks' files, are damaged or cannot be split so.

    Looks at little and is done before any process starts.
    """
    from vecsweep.engine import checkpoint, sharded, slices
    from vecsweep.files import read_json

    description = read_json(model)
    folder = weights_folder(description, model)
    if not ready:
        checkpoint.check_files(folder)
    # The plain file, since transformers takes seconds to import.
    config = read_json(folder / "config.json")
    heads = config.get("num_attention_heads", config.get("n_head"))
    if heads:
        kind = sharded.choose(engine, shards, description["family"], heads, offload)
        for rank in range(shards if ready else 0):
            slices.opened(ready, description, kind, shards, rank)


def load(
    description: dict,
    beside: Path,
    batch_tokens: int,
    shards: int = 1,
    engine: str = "auto",
    offload: bool = False,
    ready: Path | None = None,
):
    """The engine of a described model, on the GPU if there is one, in the config's dtype.

    `description` is model.json's content, `beside` its path. With several shards the processes
    that torchrun or srun started each hold a part (see `sharded`), which they read from the folder
    `ready` if stage preshard wrote it.
    """
    import transformers

    from vecsweep.engine import checkpoint, sharded, slices

    folder = weights_folder(description, beside)
    if not ready:
        checkpoint.check_files(folder)
    dtype = getattr(torch, description["dtype"])
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    heads = config.num_attention_heads
    kind = sharded.choose(engine, shards, description["family"], heads, offload)
    print(f"engine: {kind}, shards: {shards}", file=sys.stderr)
    try:
        if kind == "single":
            model = checkpoint.from_pretrained(folder, dtype)
            model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        else:
            sharded.start()
            mine = ready and slices.opened(ready, description, kind, shards, sharded.rank())
            options = {"offload": offload} if kind == "zero" else {}
            model = getattr(sharded, f"load_{kind}")(config, folder, dtype, mine, **options)
            sharded.report(model, description)
    except Problem:
        raise
    except Exception as error:  # safetensors, transformers and torch each raise their own
        reason = " ".join(str(error).split())
        raise Problem(f"cannot load '{description['model']}' from {folder}: {reason}") from error
    loaded = engine_of(model, batch_tokens)
    loaded.shards = shards if kind == "tensor" else 1
    loaded.leader = sharded.rank() == 0
    return loaded
