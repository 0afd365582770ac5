"""What a long stage did so far: after a kill the next run goes on from there, with the same numbers.

Pieces of work (see `plans.decoded`) lie in files beside the output, see `vecsweep.finished`. Two
kinds: `states`, the last block's, that are not decoded yet; `ranks`, which take their place. Names
begin with a key of all that made them; files of another key are removed.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.engine.sharded import gathered
from vecsweep.files import Tensors, provenance, write_tensors
from vecsweep.finished import folder_of, key_of

SECONDS = 1.0  # of work, at least, between two parts
SHARE = 0.01  # of the time, at most, that writing them takes
KINDS = {"ranks": ("rank", "top", "among"), "states": ("states",)}  # the tensors in a part


class Parts:
    """The pieces that are done, by name: those that `done` holds need not run again.

    Without a folder nothing is kept. The leader reads and writes; all processes of a sharded model
    must have the same `done`.
    """

    def __init__(self, folder: Path | None = None, key: str = "", leader: bool = True):
        self._folder, self._leader = folder, leader
        self._ranks: dict[str, tuple] = {}
        self._states: dict[str, torch.Tensor] = {}
        self._new: list[tuple[str, tuple]] = []  # decoded, and not written yet
        self._undecoded: dict[Path, set[str]] = {}  # files of states, and the pieces in them
        self._section = self._count = 0
        self._due = time.monotonic() + SECONDS
        # Numbers of one kind of machine do not go on with those of another.
        host = hashlib.sha256(provenance()["host"].encode()).hexdigest()[:8]
        self._name = f"{key}-{host}"
        if folder and leader:
            self._read(folder)
        self.done = frozenset([*self._ranks, *self._states])

    @classmethod
    def of(cls, args, engine) -> "Parts":
        """Those of a stage's output."""
        found = cls(folder_of(args.output), key_of(args), engine.leader)
        if engine.sharding != "single":
            found.done = gathered(found.done)[0]
        return found

    def _read(self, folder: Path) -> None:
        others = 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.name.startswith(self._name):
                others += path.name[0] != "."  # half a part that was being written
                path.unlink()
                continue
            self._count = 1 + int(path.stem.split("-")[-1])
            try:
                file = Tensors(path, "its pieces are made again")
                columns = [file[name] for name in KINDS[file.metadata["kind"]]]
            except Problem as problem:
                print(problem, file=sys.stderr)
                path.unlink()
                continue
            pieces, start = json.loads(file.metadata["pieces"]), 0
            for name, size in pieces:
                cut = tuple(column[start : start + size] for column in columns)
                start += size
                if len(columns) == 1:
                    self._states[name] = cut[0]
                else:
                    self._ranks[name] = cut
            if len(columns) == 1:
                self._undecoded[path] = {name for name, _ in pieces}
        if others:
            print(f"{folder}: {others} parts of other settings or inputs removed", file=sys.stderr)
        if self._ranks or self._states:
            pieces = self._ranks.keys() | self._states.keys()
            print(f"goes on after {len(pieces)} finished pieces", file=sys.stderr)

    def section(self) -> str:
        """Begins the names of the next pieces: several calls of a stage have the same ones."""
        self._section += 1
        return f"{self._section} "

    def ranks(self, name: str) -> tuple | None:
        """(ranks, top tokens, log probabilities) of a piece; None unless it was decoded."""
        return self._ranks.pop(name, None)

    def states(self, name: str) -> torch.Tensor:
        """The states [n, d_model] of a piece that was run and not decoded."""
        return self._states.pop(name)

    def keep(self, name: str, found: tuple) -> None:
        """Note what was decoded of a piece: (ranks, top tokens, log probabilities)."""
        if self._folder and self._leader:
            self._new.append((name, found))

    def write(self, waiting: list[tuple]) -> bool:
        """Write what is new, if it is time; whether it was. `waiting`: (name, states), not decoded."""
        if not self._folder or not self._leader or time.monotonic() < self._due:
            return False
        start = time.monotonic()
        if self._new:
            pieces = [(name, len(found[0])) for name, found in self._new]
            self._write("ranks", pieces, zip(*(found for _, found in self._new)))
            self._new = []
            written = {name for name, _ in pieces}
            for path, names in list(self._undecoded.items()):
                names -= written
                if not names:  # what takes their place is on the disk
                    path.unlink(missing_ok=True)
                    del self._undecoded[path]
        if waiting:
            pieces = [(name, len(states)) for name, states in waiting]
            path = self._write("states", pieces, [[states.cpu() for _, states in waiting]])
            self._undecoded[path] = {name for name, _ in pieces}
        took = time.monotonic() - start
        self._due = time.monotonic() + max(SECONDS, took / SHARE)
        return True

    def _write(self, kind: str, pieces: list[tuple], columns) -> Path:
        assert self._folder
        path = self._folder / f"{self._name}-{self._count:06d}.safetensors"
        self._count += 1
        tensors = {name: torch.cat(list(some)) for name, some in zip(KINDS[kind], columns)}
        write_tensors(tensors, path, {"kind": kind, "pieces": json.dumps(pieces)})
        return path
