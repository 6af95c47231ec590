"""Deaths for lack of memory, as the kernel counts them for the container (control group) that this process is in."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

FIRST_TO_END: Final = 500
"""Added to the kernel's choice of whom to end (proc(5), oom_score_adj): the server ends before what restarts it."""

_HOW: Final = "MEMORY_LIMIT in .env for Compose, or serve fewer precisions with --precisions"
_PLACES: Final = (  # of version 2 and 1 of control groups, as a container sees its own: counts, limit
    (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory.max")),
    (Path("/sys/fs/cgroup/memory/memory.oom_control"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
)


def end_first() -> None:
    """Have the kernel end this process, and those that it starts, before others of the container."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_END))


class MemoryDeaths:
    """Says whether processes were ended for lack of memory since it was asked last.

    Args:
        places: files with the kernel's count and with the limit in bytes, the first that exists counts.

    Example:
        >>> MemoryDeaths(places=()).cause()
        ''
    """

    def __init__(self, places: tuple[tuple[Path, Path], ...] = _PLACES) -> None:
        self._places = places
        self._seen = self._count()

    def cause(self) -> str:
        """Words to put behind a message about a death; empty where memory was not the cause, or nothing counts it."""
        before, self._seen = self._seen, self._count()
        if self._seen <= before:
            return ""
        return f" (the kernel ended {self._seen - before} process(es): out of memory{self._limit()}; raise it, {_HOW})"

    def _count(self) -> int:
        for events, _ in self._places:
            with contextlib.suppress(OSError):
                found = re.search(r"^oom_kill (\d+)$", events.read_text(), re.MULTILINE)
                return int(found[1]) if found else 0
        return 0

    def _limit(self) -> str:
        for _, limit in self._places:
            with contextlib.suppress(OSError, ValueError):
                return f", the limit is {int(limit.read_text()) / (1 << 30):.1f} GiB"
        return ""


MEMORY_DEATHS: Final = MemoryDeaths()
"""Of this process's container; one for all who report deaths, so that each is counted once."""
