"""Reading and writing results: never half a file, never a damaged one taken for good.

Every result carries the CRC-32 of its own content, so that it may be moved and copied: a Parquet
file in its notes, of all its bytes (Parquet itself has none of its footer); a safetensors file in
its metadata, of each tensor and of the rest; a JSON file as a key. What cannot carry its own, as
weights and tokenizers, is noted in `model.json`.
"""

import errno
import json
import os
import platform
import socket
import stat
import subprocess
import sys
import time
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


def leads() -> bool:
    """Whether this process writes what all that share a model have: the first of them does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; it takes the place of `path` only on success.

    By then it is on the disk, and its mode is what the umask says: some writers make theirs
    private.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
            if is_left(left, left.name.removeprefix(f".{path.name}.").removesuffix(".tmp")):
                left.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        settle(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        # What is written may be computed meanwhile, from files of its own.
        if isinstance(error.filename, str) and Path(error.filename) not in (
            *(path, temporary),
            *path.parents,
        ):
            reason = f"{error.filename}: {reason}"
        raise Problem(f"cannot write {path}: {reason}") from error
    finally:
        if os.path.lexists(temporary):  # in a folder that is locked nothing is
            temporary.unlink()


def is_left(temporary: Path, writer: str) -> bool:
    """Whether a temporary file of a `writer`, PID@HOST, was left by one that was killed.

    What a process of another machine has not written to for a minute: only settings are ever
    written by two at once, and in an instant.
    """
    number, _, host = writer.partition("@")
    try:
        if host == socket.gethostname() and number.isdecimal():
            os.kill(int(number), 0)
            return int(number) == os.getpid()  # an earlier process had this number
        return time.time() - temporary.lstat().st_mtime > 60
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or gone
        return False


def settle(path: Path, mode: int) -> None:
    """Bring a written file to the disk, with this mode; OSError if nothing is in it."""
    if not path.stat().st_size:
        raise OSError("nothing came into the file")
    path.chmod(mode)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


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


# Of a JSON file: no name of a model or setting starts like this. Of a Parquet file: what comes before
# the digits in the notes.
JSON_KEY = "_crc32"
MARK = b"vecsweep-crc32="


def file_crc32(path) -> str:
    """The CRC-32 of a file's bytes, in eight digits; Problem if it cannot be read."""
    found = 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                found = zlib.crc32(chunk, found)
    except OSError as error:
        raise Problem(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    return f"{found:08x}"


def header_crc32(path) -> str:
    """The CRC-32 of a safetensors file's header, in which `write_tensors` notes all checksums."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return f"{zlib.crc32(file.read(min(size, 1 << 30))):08x}"
    except OSError as error:
        raise Problem(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error


def packaged(path: Path) -> dict:
    """What a YAML file of this package holds: by libyaml, which takes a tenth of the time.

    People's own files are read by `config.parsed`, which tells where a key stands twice.
    """
    import yaml

    return yaml.load(
        path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )


def write_json(data: dict, path) -> None:
    """Write `data` as indented JSON, with its checksum."""
    marked = data | {JSON_KEY: _json_crc32(data)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(marked, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if _unmarked(json.loads(temporary.read_text("utf-8"))) is None:
            raise OSError("what came into the file is something else")


def read_json(path) -> dict:
    """The JSON object in `path`; Problem if it is missing or damaged.

    One that people or other programs wrote has no checksum.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except PermissionError as error:
        raise Problem(locked(path)) from error
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read {path}: {error}; delete it and run again") from error
    content = _unmarked(found)
    if content is None:
        raise Problem(f"{path} is damaged (checksum differs); delete it and run again")
    return content


def is_locked(path) -> bool:
    """Whether a file, or a folder above it, may not be read by this user."""
    try:
        open(path, "rb").close()
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def locked(path) -> str:
    """What to say of a file that is another user's."""
    return f"cannot read {path}: Permission denied; ask its owner for chmod -R g+rX on the results"


def _json_crc32(data: dict) -> str:
    return f"{zlib.crc32(json.dumps(data, sort_keys=True).encode()):08x}"


def _unmarked(found: dict) -> dict | None:
    """The object without its checksum; None if that differs."""
    expected = found.pop(JSON_KEY, None)
    return found if expected in (None, _json_crc32(found)) else None


def _checksum(tensor) -> str:
    return f"{zlib.crc32(_bytes(tensor)):08x}"


def _bytes(tensor):
    """A tensor's bytes, as an array, without a copy where it is contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _header_checksum(notes: dict, shapes: dict) -> str:
    return f"{zlib.crc32(json.dumps([notes, shapes], sort_keys=True).encode()):08x}"


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
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    notes = _noted(notes, shapes, dtypes, {name: _checksum(t) for name, t in tensors.items()})
    with replacing(path) as temporary:
        try:
            save_file(tensors, str(temporary), notes)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        if set(_reopened(Tensors, temporary)) != set(tensors):
            raise OSError("tensors are missing in the file")


def _noted(notes: dict | None, shapes: dict, dtypes: dict, checksums: dict) -> dict[str, str]:
    """The metadata of a safetensors file: its notes, and the checksums of its tensors and header."""
    noted = provenance() | {name: str(value) for name, value in (notes or {}).items()}
    noted.pop("checksums", None)  # those of a file whose notes were taken
    # The header's checksum is of the notes and shapes: types are noted to be in it too.
    noted["dtypes"] = json.dumps(dtypes)
    return noted | {"checksums": json.dumps(checksums | {"": _header_checksum(noted, shapes)})}


DTYPES = {"torch.float32": ("F32", 4), "torch.bfloat16": ("BF16", 2), "torch.float16": ("F16", 2)}


def write_rows(batches, rows: int, path, notes: dict | None = None) -> None:
    """Write tensors [rows, width] as `write_tensors` does, from batches of rows as they come.

    `batches` yields (places of rows, name -> [places, width]), each time with the same names. What
    was written stays in no memory. The library writes whole tensors alone; this is its format
    (https://huggingface.co/docs/safetensors, Format).
    """
    spans: dict[str, tuple[int, int]] = {}  # name -> where its first row begins, bytes of a row
    left = set(range(rows))
    with replacing(path) as temporary, open(temporary, "r+b", buffering=0) as file:
        for places, states in batches:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in states.items()}
            if not spans:
                shapes = {name: [rows, tensor.shape[1]] for name, tensor in tensors.items()}
                dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
                start = len(_header(notes, shapes, dtypes, dict.fromkeys(shapes, "0" * 8)))
                for name, tensor in tensors.items():
                    spans[name] = start, tensor[0].nbytes
                    start += rows * tensor[0].nbytes
            for name, tensor in tensors.items():
                begin, size = spans[name]
                for place, row in zip(places, tensor, strict=True):
                    _write_at(file, begin + place * size, _bytes(row))
            left.difference_update(places)
        if left:
            raise OSError(f"rows are missing in the file: {len(left)} of {rows}")
        checksums = {
            name: f"{_crc32_at(file, begin, rows * size):08x}"
            for name, (begin, size) in spans.items()
        }
        _write_at(file, 0, _header(notes, shapes, dtypes, checksums))
        if set(_reopened(Tensors, temporary)) != set(spans):
            raise OSError("tensors are missing in the file")


def _header(notes: dict | None, shapes: dict, dtypes: dict, checksums: dict) -> bytes:
    """The beginning of a safetensors file of such tensors in their order, its length first."""
    found: dict[str, Any] = {"__metadata__": _noted(notes, shapes, dtypes, checksums)}
    end = 0
    for name, (rows, width) in shapes.items():
        kind, size = DTYPES[dtypes[name]]
        begin, end = end, end + rows * width * size
        found[name] = {"dtype": kind, "shape": [rows, width], "data_offsets": [begin, end]}
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_at(file, place: int, data) -> None:
    """Write all of the data from a byte of an open file on."""
    written = 0
    while written < len(data):
        written += os.pwrite(file.fileno(), data[written:], place + written)


def _crc32_at(file, begin: int, size: int) -> int:
    """The CRC-32 of so many bytes of an open file; OSError where it ends before."""
    found, end = 0, begin + size
    while begin < end:
        data = os.pread(file.fileno(), min(1 << 24, end - begin), begin)
        if not data:
            raise OSError("the file is shorter than what was written")
        found, begin = zlib.crc32(data, found), begin + len(data)
    return found


class Tensors:
    """A safetensors file opened for reading, tensor by tensor, each one checked.

    `Tensors(path)[name]` is the tensor; Problem if the file or the tensor is damaged.
    """

    def __init__(self, path, cure: str = "delete it and run again"):
        from safetensors import SafetensorError, safe_open

        self.path, self._cure = path, cure
        try:
            self._file = safe_open(str(path), "pt")
            self.metadata = self._file.metadata() or {}
            self._checksums = json.loads(self.metadata.get("checksums", "{}"))
            shapes = self.shapes = {name: self._file.get_slice(name).get_shape() for name in self}
        except (OSError, ValueError, SafetensorError) as error:
            if is_locked(path):  # safetensors says "no such file"
                raise Problem(locked(path)) from error
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise self._damaged(reason) from error
        notes = {key: note for key, note in self.metadata.items() if key != "checksums"}
        header = _header_checksum(notes, shapes)
        if self._checksums.pop("", header) != header or set(self._checksums) != set(shapes):
            raise self._damaged("checksum of the header differs")
        self._dtypes = json.loads(notes.get("dtypes", "{}"))  # older files do not note them

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
        if self._dtypes.get(name, str(tensor.dtype)) != str(tensor.dtype):
            raise self._damaged(f"type of {name} differs")
        if self._checksums.get(name, "") != _checksum(tensor):
            raise self._damaged(f"checksum of {name} differs")
        return tensor

    def _damaged(self, why):
        return Problem(f"{self.path} is damaged ({why}); {self._cure}")


def _reopened(reader: Callable[..., Any], path) -> Any:
    """What a reader finds in a file that was just written; OSError if it is damaged."""
    try:
        return reader(path)
    except Problem as problem:
        raise OSError(f"what came into the file is something else: {problem}") from problem


def write_table(table, path, notes: dict | None = None) -> None:
    """Write a pyarrow table as Parquet, with a checksum of the file and where it comes from."""
    write_tables([table], table.schema, path, notes)


def write_tables(tables, schema, path, notes: dict | None = None) -> None:
    """Write pyarrow tables of one schema as one Parquet file, each when it comes."""
    import pyarrow.parquet as pq

    notes = provenance() | {name: str(value) for name, value in (notes or {}).items()}
    schema = schema.with_metadata(notes)
    how: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
    written = 0
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, schema, **how) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(notes))
                written += len(table)
            # Added last: it stands in the notes alone, and not in a copy of them.
            writer.add_key_value_metadata({"checksum": (MARK + b"0" * 8).decode()})
        _mark(temporary)
        rows = _reopened(lambda path: _opened(_checked(path)[0], path).metadata.num_rows, temporary)
        if rows != written:
            raise OSError(f"{rows} of {written} rows came into the file")


def _mark(path) -> None:
    """Write a file's checksum to where its mark stands."""
    data = Path(path).read_bytes()
    with open(path, "rb+") as file:
        file.seek(data.rindex(MARK) + len(MARK))
        file.write(f"{zlib.crc32(data):08x}".encode())


def _checked(path) -> tuple[bytes, bool]:
    """(the bytes of a Parquet file, whether they carry a checksum); Problem if that differs."""
    try:
        data = Path(path).read_bytes()
    except PermissionError as error:
        raise Problem(locked(path)) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Problem(f"cannot read {path}: {reason}; run again") from error
    start = data.rfind(MARK) + len(MARK)
    if start < len(MARK):
        return data, False
    found = zlib.crc32(data[start + 8 :], zlib.crc32(b"0" * 8, zlib.crc32(data[:start])))
    if data[start : start + 8] != f"{found:08x}".encode():
        raise Problem(f"{path} is damaged (checksum differs); delete it and run again")
    return data, True


def _opened(data: bytes, path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run again") from error


def check_tables(paths) -> None:
    """Problem unless Parquet files are whole, for what reads them without checking.

    Those without a checksum, of older versions of vecsweep, are taken with a line that says so.
    """
    unchecked = [path for path in paths if not _checked(path)[1]]
    if unchecked:
        others = f" and {len(unchecked) - 1} others" * (len(unchecked) > 1)
        print(f"{unchecked[0]}{others}: no checksum in it, so not checked", file=sys.stderr)


def read_table(path, columns: list[str] | None = None, where: dict | None = None):
    """The pyarrow table in a Parquet file; Problem if it is missing or damaged.

    Of `columns` alone; or of the rows that have all values of `where`, {column: value}.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    data, marked = _checked(path)
    if not marked:
        print(f"{path}: no checksum in it, so not checked", file=sys.stderr)
    file = _opened(data, path)
    try:
        # By this thread alone: one of pyarrow's pool that is still starting when Python ends
        # aborts it, whatever it had done (github.com/apache/arrow/issues/34314).
        table = file.read(columns=columns, use_threads=False)
        for name, value in (where or {}).items():
            table = table.filter(pc.equal(table[name], value))
        return table
    except (OSError, pa.ArrowException) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run again") from error
