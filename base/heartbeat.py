"""Since when a process of the Python backend has been in one call: what tells a hang from work.

Each process writes the moment into a file of eight bytes in shared memory; the supervisor reads it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Final

_MOMENT: Final = struct.Struct("<q")
_NAME: Final = "busy_"


class Heartbeat:
    """This process's file.

    Attributes:
        path: the file.
    """

    def __init__(self, prefix: Path) -> None:
        """Make the file, for this process.

        Args:
            prefix: beginning of its path; see :func:`heartbeat_path`.
        """
        for left in prefix.parent.glob(f"{prefix.name}{_NAME}*"):  # by processes that a reload ended
            if not Path(f"/proc/{left.name.rpartition('_')[2]}").exists():
                left.unlink(missing_ok=True)
        self.path = heartbeat_path(prefix, os.getpid())
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _MOMENT.size)
            self._memory = mmap(descriptor, _MOMENT.size)
        finally:
            os.close(descriptor)
        _MOMENT.pack_into(self._memory, 0, 0)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around one call."""
        _MOMENT.pack_into(self._memory, 0, time.monotonic_ns())
        try:
            yield
        finally:
            _MOMENT.pack_into(self._memory, 0, 0)


def heartbeat_path(prefix: Path, pid: int) -> Path:
    """The file of one process."""
    return Path(f"{prefix}{_NAME}{pid}")


def busy_for_s(prefix: Path, pid: int) -> float:
    """How long a process has been in its call, in seconds; 0 if it is idle or has no file."""
    try:
        (moment,) = _MOMENT.unpack(heartbeat_path(prefix, pid).read_bytes())
    except (OSError, struct.error):
        return 0.0
    return (time.monotonic_ns() - moment) / 1e9 if moment else 0.0
