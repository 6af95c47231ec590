"""How long a process of the Python backend has been in one call, to tell a hang from work.

Each process writes the start of its call into a file of eight bytes in shared memory; the supervisor reads it.
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

from base.files import open_private

_MOMENT: Final = struct.Struct("<q")
_NAME: Final = "busy_"


class Heartbeat:
    """This process's file.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path) -> None:
        """Make the file, for this process.

        Args:
            folder: one that only this user can enter; see :func:`base.files.private_folder`.

        Raises:
            OSError: the file cannot be made, or another user's is there.
        """
        for left in folder.glob(f"{_NAME}*"):  # left by processes that a reload ended
            if not Path(f"/proc/{left.name.rpartition('_')[2]}").exists():
                left.unlink(missing_ok=True)
        self.path = heartbeat_path(folder, os.getpid())
        descriptor = open_private(self.path, os.O_RDWR | os.O_CREAT)
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


def heartbeat_path(folder: Path, pid: int) -> Path:
    """The file of one process."""
    return folder / f"{_NAME}{pid}"


def busy_for_s(folder: Path, pid: int) -> float:
    """How long a process has been in its call, in seconds; 0 if it is idle or has no file."""
    try:
        (moment,) = _MOMENT.unpack(heartbeat_path(folder, pid).read_bytes())
    except (OSError, struct.error):
        return 0.0
    return (time.monotonic_ns() - moment) / 1e9 if moment else 0.0
