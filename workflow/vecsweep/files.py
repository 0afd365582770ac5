"""Reading and writing results: never half a file, never a damaged one taken for good."""

import errno
import json
import os
import platform
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from glob import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from vecsweep import Problem, nearest

PACKAGE = Path(__file__).parent


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; it takes the place of `path` only on success."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):  # by one that was killed
            left.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise Problem(f"cannot write {path}: {reason}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def text_in(path, encoding="utf-8-sig") -> str:
    """The text of a file that a user gave; Problem unless there is one that can be read.

    A byte order mark is no part of it, but with encoding utf-8 it is.
    """
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise Problem(f"{path} is a folder; name a file in it")
        if not stat.S_ISREG(found.st_mode):  # to read one may never end
            raise Problem(f"{path} is a device or pipe; name a file")
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read {path}: {_reason(error, path)}") from error


def _reason(error, path):
    """Why a file cannot be read, and what to do."""
    kind = getattr(error, "errno", None)
    said = os.strerror(kind) if kind else str(error)
    if kind == errno.ENOENT:
        try:
            beside = os.listdir(path.parent)
        except OSError:
            beside = []
        return f"{said}{nearest(path.name, beside)}; correct the path, or put the file there"
    cures = {errno.EACCES: "make it readable", errno.ELOOP: "its link points at itself, mend it"}
    return f"{said}; {cures.get(kind, 'correct the path')}"


def once(args, make: Callable[..., Any], *paths) -> Any:
    """What `make` reads from paths: read once for all tasks of the job that `args` belong to."""
    loaded = getattr(args, "loaded", {})
    if (make, *paths) not in loaded:
        loaded[make, *paths] = make(*paths)
    return loaded[make, *paths]


def write_json(data: dict, path) -> None:
    """Write `data` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path) -> dict:
    """The JSON object in `path`; Problem if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read {path}: {error}; delete it and run again") from error


def _checksum(tensor) -> str:
    import torch

    return format(zlib.crc32(tensor.contiguous().view(torch.uint8).numpy()), "08x")


def _header_checksum(notes: dict, shapes: dict) -> str:
    return format(zlib.crc32(json.dumps([notes, shapes], sort_keys=True).encode()), "08x")


PACKAGES = ("torch", "transformers", "deepspeed", "numpy", "pyarrow", "duckdb")


@cache
def provenance() -> dict[str, str]:
    """What made a result: version and git commit of this code, packages, kind of host."""
    from vecsweep import __version__

    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    git = ["git", "-C", str(PACKAGE), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    host = platform.machine()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        host = sys.modules["torch"].cuda.get_device_name()
    return {
        "vecsweep": __version__,
        "git_commit": commit,
        "python": platform.python_version(),
        "packages": json.dumps(installed),
        "host": host,
    }


def write_tensors(tensors: dict, path, notes: dict | None = None) -> None:
    """Write named tensors as safetensors, with a checksum for each in the metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = provenance() | {name: str(value) for name, value in (notes or {}).items()}
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = _header_checksum(notes, {name: list(t.shape) for name, t in tensors.items()})
    notes["checksums"] = json.dumps(checksums | {"": header})
    with replacing(path) as temporary:
        try:
            save_file(tensors, str(temporary), notes)
        except SafetensorError as error:
            raise OSError(str(error)) from error


class Tensors:
    """A safetensors file opened for reading, tensor by tensor, each one checked.

    `Tensors(path)[name]` is the tensor; Problem if the file or the tensor is damaged.
    """

    def __init__(self, path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(str(path), "pt")
            self.metadata = self._file.metadata() or {}
            self._checksums = json.loads(self.metadata.get("checksums", "{}"))
            shapes = {name: self._file.get_slice(name).get_shape() for name in self}
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(str(error)) from error
        notes = {key: note for key, note in self.metadata.items() if key != "checksums"}
        header = _header_checksum(notes, shapes)
        if self._checksums.pop("", header) != header or set(self._checksums) != set(shapes):
            raise self._damaged("checksum of the header differs")

    def __iter__(self):
        return iter(self._file.keys())

    def __contains__(self, name):
        return name in self._file.keys()

    def __getitem__(self, name):
        from safetensors import SafetensorError

        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise self._damaged(str(error)) from error
        if self._checksums.get(name, "") != _checksum(tensor):
            raise self._damaged(f"checksum of {name} differs")
        return tensor

    def _damaged(self, why):
        return Problem(f"{self.path} is damaged ({why}); delete it and run again")


def write_table(table, path, notes: dict | None = None) -> None:
    """Write a pyarrow table as Parquet, with page checksums and where it comes from."""
    import pyarrow.parquet as pq

    notes = provenance() | {name: str(value) for name, value in (notes or {}).items()}
    table = table.replace_schema_metadata(notes)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path, **options):
    """The pyarrow table in a Parquet file; Problem if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, page_checksum_verification=True, **options)
    except (OSError, pa.ArrowException) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run again") from error
