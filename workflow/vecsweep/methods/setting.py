"""What a method may make its vectors from: train prompts alone, and the model."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from vecsweep.engine.forward import last_token_states
from vecsweep.engine.load import Engine
from vecsweep.files import Tensors
from vecsweep.tasks.rows import kept_rows

Groups = list[list[list[int]]]  # token ids of prompts that share their beginning


class Vector(NamedTuple):
    """A vector [d_model] and what it is: its method, where it was cut, of which prompt."""

    value: torch.Tensor
    method: str
    source_layer: int | None = None
    donor: int | None = None
    repeat: int | None = None

    @property
    def names(self) -> dict:
        """Its columns in table `interventions`."""
        names = ("method", "source_layer", "donor", "repeat")
        return {name: getattr(self, name) for name in names}


@dataclass
class Donors:
    """The file of stage ovectors: `vectors` [n, d_model] with their (prompt_id, layer).

    The mean of a layer's donors has the prompt_id None. `flips` lists all donors of each source
    layer, the layer with most of them first.
    """

    path: Path
    vectors: torch.Tensor = field(init=False)
    names: list[tuple[int | None, int]] = field(init=False)
    flips: dict[int, list[int]] = field(init=False)

    def __post_init__(self):
        file = Tensors(self.path)
        self.vectors = file["vectors"]
        self.names = [tuple(pair) for pair in json.loads(file.metadata["donors"])]
        self.flips = {int(k): ids for k, ids in json.loads(file.metadata["flips"]).items()}

    def of(self, layer: int) -> list[tuple[int, torch.Tensor]]:
        """(prompt_id, vector) of the donors of a source layer, the one that is searched first."""
        return [
            (donor, vector)
            for (donor, source), vector in zip(self.names, self.vectors)
            if source == layer and donor is not None
        ]

    def mean(self, layer: int) -> torch.Tensor:
        """The mean [d_model] over all donors of a source layer."""
        return self.vectors[self.names.index((None, layer))]

    @property
    def used(self) -> set[int]:
        """prompt_id of every prompt that any vector is made of."""
        return {donor for donors in self.flips.values() for donor in donors}

    @cached_property
    def directions(self) -> torch.Tensor:
        """Singular directions [k, d_model] of the vectors of all donors `used`, largest first."""
        return Tensors(self.path)["directions"]


@dataclass
class Material:
    """One task of a model: its donors, its kept novel prompts `own`, files of other tasks' vectors.

    `shown` are prompts with several demonstrations, `heads` the file of stage heads if there is one:
    of stage contenders alone.
    """

    engine: Engine
    prompts: Path
    own: list[dict]
    donors: Donors
    rivals: list[Path]
    settings: dict
    shown: Groups = field(default_factory=list)
    heads: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, args, engine, own, donors) -> "Material":
        """From a stage's arguments."""
        return cls(engine, args.prompts, own, donors, args.rival, args.settings)

    @property
    def seed(self) -> str:
        """A seed of its own for every task."""
        return f"{self.settings['seed']} {self.settings['task']}"

    @cached_property
    def shown_states(self) -> dict[str, torch.Tensor]:
        """Mean states at the last token of the prompts `shown`: name -> [d_model], in float32."""
        states = last_token_states(self.engine, self.shown)
        return {name: state.float().mean(0) for name, state in states.items()}

    @cached_property
    def _flip_states(self) -> tuple[list[int], list[dict[str, torch.Tensor]]]:
        ids = sorted(self.donors.used)
        found = []
        for prompt_set in ("abstractive", "novel"):
            rows = {r["prompt_id"]: r for r in kept_rows(self.prompts, (prompt_set,))}
            groups = [[rows[number]["token_ids"]] for number in ids]
            found.append(last_token_states(self.engine, groups))
        return ids, found

    def flip_states(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """States after a source layer's block, in its donors' abstractive and novel prompts.

        Both [donors of the layer, d_model], at the last token, in float32.
        """
        ids, (abstractive, novel) = self._flip_states
        rows = [ids.index(donor) for donor in self.donors.flips[layer]]
        name = f"resid_post.{layer:02d}"
        return abstractive[name][rows].float(), novel[name][rows].float()
