"""What a job took of its GPUs: a line in its log, which `vecsweep.tools.status --jobs` reads."""

import re
import sys

LINE = re.compile(r"GPU memory: (\d+) of (\d+) MB at most")


def report() -> None:
    """Print the most memory that this process took of its GPU; nothing without one.

    Every process has a GPU and prints its own line.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        print(line(torch.cuda.max_memory_allocated(), whole), file=sys.stderr)


def line(used: int, whole: int) -> str:
    """The line for bytes `used` of a GPU's `whole` memory."""
    return f"GPU memory: {used // 10**6} of {whole // 10**6} MB at most"


def found(log: str) -> list[tuple[int, int]]:
    """(MB used, MB of the GPU) by each process's line in a log."""
    return [(int(used), int(whole)) for used, whole in LINE.findall(log)]
