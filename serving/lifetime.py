"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
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
