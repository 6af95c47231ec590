"""Processes that end on a signal, or with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def end_with(parent: int) -> None:
    """Ask the kernel for SIGTERM to this process when its parent ends; end at once if that has happened already.

    Two system calls and no locks, so that it may run between fork and exec.

    Args:
        parent: process number of the parent, taken by the parent itself.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, so that ``finally`` blocks run.

    Python does not handle SIGTERM, nor SIGINT where it was ignored when the process started: a shell without job
    control does that to ``command &``, and ``make`` and ``nohup`` pass it on. Only the first signal counts, so that the
    next cannot interrupt the clean-up: ``make`` repeats what the whole process group has got. Use it in the main
    thread.

    Example:
        >>> with interruptible():
        ...     os.kill(os.getpid(), signal.SIGTERM)
        Traceback (most recent call last):
        KeyboardInterrupt
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
