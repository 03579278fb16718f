"""Whether there is memory to go on with, seen before it is needed: in the middle of a change nobody can turn back.

Only where allocations can fail at all: under a limit of address space (``ulimit -v``), or where the kernel promises no
more than it has.  Elsewhere the kernel ends a process, and whoever comes after takes up what was written down.
"""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

STRICT = "2"  # of /proc/sys/vm/overcommit_memory


class Headroom:
    """``need``: bytes that one turn of a loop takes at most."""

    def __init__(self, need: int) -> None:
        self._need = need
        try:
            self._strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == STRICT
        except OSError:
            self._strict = False

    @property
    def limited(self) -> bool:
        """Whether an allocation may fail."""
        return self._strict or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY

    def lacks(self) -> bool:
        """Whether there is too little now."""
        if not self.limited:
            return False
        try:
            mmap.mmap(-1, self._need).close()
        except (OSError, MemoryError):
            return True
        return False
