"""Signs of progress of the processes that share a model, and the launcher's look for them.

A process that is stopped, or waits for a disk that does not answer, leaves all others in a sum that
never comes: gloo and NCCL give up after many minutes and blame what they did. So each process
touches a file every second in which it got on, and its launcher ends it when that stops.
"""

import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from vecsweep import Problem

FOLDER = "VECSWEEP_SIGNS"  # the launcher's folder of them, one a process
LIMIT = "VECSWEEP_HANG_SECONDS"
SECONDS = 45
WAITING = ("/torch/distributed/", "/deepspeed/comm/")  # where a process waits for the others
PACKAGE = str(Path(__file__).parent.parent)


def give() -> None:
    """From now on give signs of this process's progress; SIGUSR1 prints its stacks."""
    if FOLDER not in os.environ:
        return
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_give, args=(_file(),), daemon=True).start()


def end() -> None:
    """This process is done: no more signs are to be expected."""
    if FOLDER in os.environ:
        _file().unlink(missing_ok=True)


def _file() -> Path:
    return Path(os.environ[FOLDER], f"{os.environ['RANK']}.{os.getpid()}")


def _give(file: Path) -> None:
    before, used = None, 0.0
    file.write_text("its start")
    while True:
        now, place, waits = _state()
        worked = time.process_time() - used > 0.02  # of the second: of any of its threads
        if waits or worked or now != before:
            with suppress(FileNotFoundError):  # it was removed: the end
                with open(file, "r+") as sign:
                    sign.write(place)
                    sign.truncate()
        before, used = now, time.process_time()
        time.sleep(1)


def _state() -> tuple[tuple, str, bool]:
    """What changes while the main thread gets on; its place in this package; whether it waits for others."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    top = frame = sys._current_frames().get(threading.main_thread().ident or 0)
    place, depth, waits = "its start", 0, False
    while frame:
        file = frame.f_code.co_filename
        waits |= depth < 8 and any(part in file for part in WAITING)
        if file.startswith(PACKAGE):
            place = f"{file.removeprefix(PACKAGE)[1:]}:{frame.f_lineno}"
            break
        frame, depth = frame.f_back, depth + 1
    # Pages that came from a disk are progress too: a file that is being read, slowly.
    faults = usage.ru_majflt, usage.ru_inblock
    return (top and (top.f_code, top.f_lasti), faults), place, waits


class Watch:
    """The launcher's look at its processes: `hung` says which one hangs, once one does.

    Problem if the environment's VECSWEEP_HANG_SECONDS is no number of seconds.
    """

    def __init__(self, folder: Path):
        given = os.environ.get(LIMIT, str(SECONDS))
        if not given.isdecimal() or int(given) < 1:
            raise Problem(f"{LIMIT} is {given}; write a number of seconds, 1 or more")
        folder.mkdir()
        os.environ[FOLDER] = str(folder)
        self.hung = ""
        self._folder = folder
        self._seconds = int(given)
        self._done = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def end(self) -> None:
        self._done.set()
        os.environ.pop(FOLDER, None)

    def _look(self) -> None:
        last: dict[str, int] = {}
        quiet: dict[str, int] = {}
        # Seconds of our own, not of the clock: Slurm may have suspended the whole job meanwhile.
        while not self._done.wait(1):
            for file in self._folder.glob("*"):
                with suppress(FileNotFoundError):
                    sign = file.stat().st_mtime_ns
                    quiet[file.name] = (
                        quiet.get(file.name, 0) + 1 if last.get(file.name) == sign else 0
                    )
                    last[file.name] = sign
            here = {file.name for file in self._folder.glob("*")}
            longest = max(
                here, key=lambda name: (quiet.get(name, 0), -last.get(name, 0)), default=""
            )
            if longest and quiet.get(longest, 0) >= self._seconds:
                return self._stop(longest)

    def _stop(self, longest: str) -> None:
        """Print all stacks and kill the process that hangs; its launcher then stops the others."""
        rank, number = longest.split(".")
        try:
            place = (self._folder / longest).read_text()
        except FileNotFoundError:  # it ended just now
            return
        self.hung = (
            f"process {rank} hangs at {place}: no progress for {self._seconds} s; the stacks of all "
            f"are above; {LIMIT} sets how long it may take"
        )
        # Those that wait print before a stopped one goes on, and they with it.
        for sent in (signal.SIGUSR1, signal.SIGCONT):
            for file in self._folder.glob("*"):
                with suppress(ProcessLookupError):
                    os.kill(int(file.suffix[1:]), sent)
            time.sleep(1)
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
        if not self._done.wait(30):  # it waits for a disk, and cannot even be killed
            print(f"vecsweep: {self.hung}", file=sys.stderr, flush=True)
            os._exit(1)
