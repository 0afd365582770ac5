"""What a long stage did so far: after a kill the next run goes on from there, with the same numbers.

Pieces of work (see `plans.decoded`) lie in files beside the output, see `vecsweep.finished`. They are
`states`, the last block's, that are not decoded yet, or what a stage makes of a piece: `ranks`, which
take the place of states, `numbers`, `jacobians`. Names begin with a key of all that made them; files
of another key are removed.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.engine.sharded import gathered
from vecsweep.files import Tensors, provenance, write_tensors
from vecsweep.finished import folder_of, key_of, table_of

SECONDS = 1.0  # of work, at least, between two parts
SHARE = 0.01  # of the time, at most, that writing them takes
KINDS = {  # the tensors in a part
    "ranks": ("rank", "top", "among"),
    "states": ("states",),
    "numbers": ("numbers",),
    "jacobians": ("gradients", "products"),
}


class Parts:
    """The pieces that are done, by name: those that `done` holds need not run again.

    Without a folder nothing is kept. The leader reads and writes; all processes of a sharded model
    must have the same `done`.
    """

    def __init__(self, folder: Path | None = None, key: str = "", leader: bool = True):
        self._folder, self._leader = folder, leader
        self._found: dict[str, tuple] = {}
        self._states: dict[str, torch.Tensor] = {}
        self._new: dict[str, list[tuple]] = {}  # kind -> (name, found), not written yet
        self._waiting: dict[str, torch.Tensor] = {}  # states, not decoded and not written yet
        self._undecoded: dict[Path, set[str]] = {}  # files of states, and the pieces in them
        self._section = self._count = 0
        self._due = time.monotonic() + SECONDS
        # Numbers of one kind of machine do not go on with those of another.
        host = hashlib.sha256(provenance()["host"].encode()).hexdigest()[:8]
        self._name = f"{key}-{host}"
        if folder and leader:
            self._read(folder)
        self.done = frozenset([*self._found, *self._states])

    @classmethod
    def of(cls, args, engine) -> "Parts":
        """Those of a stage's command."""
        found = cls(folder_of(table_of(args)), key_of(args), engine.leader)
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
                kind = file.metadata["kind"]
                columns = [file[name] for name in KINDS[kind]]
            except Problem as problem:
                print(problem, file=sys.stderr)
                path.unlink()
                continue
            pieces, start = json.loads(file.metadata["pieces"]), 0
            for name, size in pieces:
                cut = tuple(column[start : start + size] for column in columns)
                start += size
                if kind == "states":
                    self._states[name] = cut[0]
                else:
                    self._found[name] = cut
            if kind == "states":
                self._undecoded[path] = {name for name, _ in pieces}
        if others:
            print(f"{folder}: {others} parts of other settings or inputs removed", file=sys.stderr)
        if self._found or self._states:
            pieces = self._found.keys() | self._states.keys()
            print(f"goes on after {len(pieces)} finished pieces", file=sys.stderr)

    def section(self) -> str:
        """Begins the names of the next pieces: several calls of a stage have the same ones."""
        self._section += 1
        return f"{self._section} "

    def has(self, name: str) -> bool:
        """Whether a piece is done. Asked before each pass, so what is due is written then.

        A pass gives many pieces at once: what a kill costs is the pass that runs, not the one before.
        """
        self.write()
        return name in self.done

    def found(self, name: str) -> tuple | None:
        """What was kept of a piece; None if nothing was, or its states alone."""
        return self._found.pop(name, None)

    def states(self, name: str) -> torch.Tensor:
        """The states [n, d_model] of a piece that was run and not decoded."""
        return self._states.pop(name)

    def keep(self, name: str, found: tuple, kind: str = "ranks") -> None:
        """Note what was found of a piece: tensors [n, ...] as KINDS names them."""
        if self._folder and self._leader:
            self._waiting.pop(name, None)
            self._new.setdefault(kind, []).append((name, found))

    def wait(self, name: str, states: torch.Tensor) -> None:
        """Note the states [n, d_model] of a piece that is to be decoded."""
        if self._folder and self._leader:
            self._waiting[name] = states

    def once(self, name: str, make: Callable[[], tuple], kind: str) -> tuple:
        """What was kept of a piece; else what `make` gives, which is kept."""
        found = self.found(name)
        if found is None:
            found = make()
            self.keep(name, found, kind)
            self.write()
        return found

    def write(self) -> None:
        """Write what is new, if it is time."""
        if not self._folder or not self._leader or time.monotonic() < self._due:
            return
        start = time.monotonic()
        while self._new:
            kind, new = self._new.popitem()
            pieces = [(name, len(found[0])) for name, found in new]
            self._write(kind, pieces, zip(*(found for _, found in new)))
            written = {name for name, _ in pieces}
            for path, names in list(self._undecoded.items()):
                names -= written
                if not names:  # what takes their place is on the disk
                    path.unlink(missing_ok=True)
                    del self._undecoded[path]
        if self._waiting:
            pieces = [(name, len(states)) for name, states in self._waiting.items()]
            columns = [[states.cpu() for states in self._waiting.values()]]
            path = self._write("states", pieces, columns)
            self._undecoded[path] = {name for name, _ in pieces}
            self._waiting = {}
        took = time.monotonic() - start
        self._due = time.monotonic() + max(SECONDS, took / SHARE)

    def _write(self, kind: str, pieces: list[tuple], columns) -> Path:
        assert self._folder
        path = self._folder / f"{self._name}-{self._count:06d}.safetensors"
        self._count += 1
        tensors = {name: torch.cat(list(some)) for name, some in zip(KINDS[kind], columns)}
        write_tensors(tensors, path, {"kind": kind, "pieces": json.dumps(pieces)})
        return path
