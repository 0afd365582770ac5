"""Python starts at once: a process that has imported what others made is forked for each start.

Most of what a Snakemake run of tiny models costs is imports: torch, transformers, Snakemake itself.
`environment()` gives one in whose PATH `python -m MODULE ...` and `snakemake ...` are forks of such
a process. All of vecsweep and the workflow is read anew by each, from the caller's PYTHONPATH; folder,
environment, terminal, exit code and signals are the caller's too. What is not seen this way: a
cold start's imports, for which the walk of test_readme.py starts every process cold; and an order of
sets that differs between processes (forks share a hash seed), for which `other()` has another.
"""

import array
import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

SHIM = """#!/bin/sh
exec "{python}" -IS "{client}" "{socket}" {name} "$@"
"""


@cache
def folder(seed: str) -> Path:
    """A folder with `python` and `snakemake` of a hash seed; their server ends with this process."""
    # Sockets need a short path, which pytest's own folders are not.
    keeper = tempfile.TemporaryDirectory(prefix="warm-")
    place = Path(keeper.name)
    for name in ("python", "snakemake"):
        names = {"python": sys.executable, "client": __file__, "socket": place / "socket"}
        (place / name).write_text(SHIM.format(name=name, **names))
        (place / name).chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "socket"))
    listener.listen(64)  # who comes before the imports are done waits
    # Of this process's settings, those of threads and arithmetic are read at import.
    given = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, __file__, str(listener.fileno())],
        env=given | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed},
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        cwd=place,
    )
    listener.close()

    def end():
        server.stdin.close()
        server.wait()
        keeper.cleanup()

    atexit.register(end)
    return place


def environment(seed: str = "1", **changes: str) -> dict[str, str]:
    """This process's environment, with warm programs first in its PATH, and one thread a process."""
    path = [str(folder(seed)), str(Path(sys.executable).parent), os.environ["PATH"]]
    return os.environ | {"PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"} | changes


def other(**changes: str) -> dict[str, str]:
    """The same, where sets have another order."""
    return environment("2", **changes)


def client(place: str, name: str, words: list[str]) -> int:
    """Hand on a command, with this process's files, folder and environment; its exit code."""
    if name == "snakemake":
        words = ["-m", "snakemake", *words]
    if words[:1] == ["-u"]:  # as torch's launcher starts the processes of a model
        os.environ["PYTHONUNBUFFERED"] = "1"
        words = words[1:]
    if words[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *words])
    python = str(Path(place).with_name("python"))
    request = {"words": words, "cwd": os.getcwd(), "environ": dict(os.environ)}
    request = json.dumps(request | {"executable": python})
    data = request.encode("utf-8", "surrogateescape")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    connection.sendmsg([len(data).to_bytes(8, "big")], files)
    connection.sendall(data)
    code = int(connection.makefile().read() or 1)
    if code < 0:  # as the shell would say of the process itself
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(listener: socket.socket) -> None:
    """Fork for each command until whoever started this process has ended."""
    import_all()
    gc.freeze()
    signal.signal(signal.SIGCHLD, reap)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(connection)
        connection.close()


def reap(*_) -> None:
    """Wait for the forks that have ended: the time that they took is then this process's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def attend(connection: socket.socket) -> None:
    """Run one command in a fork: tell its exit code, or kill it when its caller has ended."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(head, "big")))
    child = os.fork()
    if not child:
        connection.close()
        run(request, files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended in ready:
        connection.sendall(str(code).encode())
    os._exit(0)


def run(request: dict, files: list[int]) -> None:
    """Become the process that was asked for: python -m MODULE WORDS."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request["cwd"], *given, *sys.path[1:]]
    sys.executable = request["executable"]
    _, module, *words = request["words"]
    sys.argv = [module, *words]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # what people see of Python's own end; taking modules apart takes longer than jobs
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_all() -> None:
    """What jobs and Snakemake import that is not ours."""
    import duckdb  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import numba
    import pyarrow.parquet  # noqa: F401
    import rich.progress  # noqa: F401
    import safetensors.torch  # noqa: F401
    import seaborn  # noqa: F401
    import snakemake.cli  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401
    import transformers.models.gptj.modeling_gptj  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    numba.njit(lambda x: x + 1)(1)  # the compiler itself starts with its first function
    assert not [name for name in sys.modules if "vecsweep" in name]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        sys.exit(client(sys.argv[1], sys.argv[2], sys.argv[3:]))
