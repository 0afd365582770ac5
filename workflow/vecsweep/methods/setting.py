"""The setting that was chosen on dev, and what a method may make its vectors from."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from vecsweep.engine.load import Engine
from vecsweep.engine.plans import Plan, end_layer, plan
from vecsweep.files import Tensors


def read_vectors(path) -> tuple[torch.Tensor, list[tuple]]:
    """(o-vectors [n, d_model], [(donor's prompt_id, source layer), ...]) of stage ovectors.

    The last one is the mean of the donors, whose prompt_id is None.
    """
    file = Tensors(path)
    return file["vectors"], [tuple(pair) for pair in json.loads(file.metadata["donors"])]


@dataclass
class Setting:
    """One task of a model at its chosen setting: edit layers start..end, in a mode, at a scale.

    `vectors` [n, d_model] and `donors` are those of stage ovectors, `index` the chosen one's place;
    `own` are the task's kept novel prompts; `rivals` files of other tasks' vectors.
    """

    engine: Engine
    own: list[dict]
    prompts: Path
    vectors: torch.Tensor
    donors: list[tuple]
    vectors_file: Path
    rivals: list[Path]
    settings: dict
    index: int
    start: int
    end: int
    mode: str
    scale: float

    @classmethod
    def of(cls, chosen: dict, args, engine, own, vectors, donors) -> "Setting":
        """From what `selection.choose` found and the stage's arguments."""
        return cls(
            engine, own, args.prompts, vectors, donors, args.vectors, args.rival, args.settings,
            index=donors.index((chosen["donor"], chosen["source_layer"])),
            start=chosen["start_layer"],
            end=end_layer(args.settings, len(engine.blocks)),
            mode=chosen["mode"],
            scale=chosen["scale"],
        )  # fmt: skip

    @property
    def vector(self) -> torch.Tensor:
        """The chosen o-vector [d_model]."""
        return self.vectors[self.index]

    @property
    def layer(self) -> int:
        """The source layer of the chosen vector."""
        return self.donors[self.index][1]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @cached_property
    def directions(self) -> torch.Tensor:
        """Singular directions [k, d_model] of all eligible o-vectors of the task, largest first."""
        return Tensors(self.vectors_file)["directions"]

    def plan(self, vectors: torch.Tensor, names: list[dict], **changes) -> Plan:
        """Vectors [n, d_model] at the chosen setting; `changes`: mode, end or scale."""
        settings = self.settings | {"scales": [changes.get("scale", self.scale)]}
        mode, end = changes.get("mode", self.mode), changes.get("end", self.end)
        return plan(settings, mode, self.start, end, vectors, names)
