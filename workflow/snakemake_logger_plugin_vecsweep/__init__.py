"""`snakemake --logger vecsweep`: one line a stage, and what failed last.

Snakemake finds a logger by the name of its package, so this one stands beside `vecsweep`.
"""

import sys
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase


class LogHandler(LogHandlerBase):
    """Hands Snakemake's events to `vecsweep.progress`."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True  # of its own: it takes few events
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        # Of a checkout other than the installed one its own package, as its Snakefile would import.
        here = Path("workflow").absolute()
        if (here / "vecsweep").is_dir():
            sys.path.insert(0, str(here))
        from vecsweep.progress import Display  # not in each of a cluster's jobs

        self.display = Display(dryrun=self.common_settings.dryrun)

    def emit(self, record) -> None:
        try:
            self.display.take(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self.display.close()
        super().close()
