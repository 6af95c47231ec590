"""Processes below one, looked at while they come and go."""

from __future__ import annotations

import contextlib

import psutil


def below(pid: int, name: str | None = None) -> list[psutil.Process]:
    """The live processes below one, at any depth; those that end while they are looked at are left out.

    Args:
        pid: of the uppermost process, itself left out. One that has ended has none below it.
        name: of the program; None for all.
    """
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and name in (None, process.name()):
                    found.append(process)
    return found
