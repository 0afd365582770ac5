"""Load a model that stage `models` described, ready for forward passes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.models.families import Family, family_of, is_parallel, module_at


@dataclass
class Engine:
    """A loaded model and its parts, named as in `families`."""

    model: torch.nn.Module
    family: Family
    parallel: bool
    batch_tokens: int
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
    return folder


def load(description: dict, beside: Path, batch_tokens: int) -> Engine:
    """The engine of a described model, on the GPU if there is one, in the config's dtype.

    `description` is model.json's content, `beside` its path.
    """
    import transformers

    folder = weights_folder(description, beside)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, description["dtype"]), local_files_only=True
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise Problem(f"cannot load '{description['model']}' from {folder}: {reason}") from error
    return engine_of(model.to(device), batch_tokens)
