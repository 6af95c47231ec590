"""How glibc keeps freed memory: environment of a server's processes, and a setting that a process makes itself."""

from __future__ import annotations

import ctypes
from typing import Final

from base.cpus import usable_cpus

_KEPT_BLOCK_BYTES: Final = 32 * 1024 * 1024  # the highest threshold that glibc takes (HEAP_MAX_SIZE / 2)
_KEPT_BYTES: Final = 64 * 1024 * 1024
_ARENAS: Final = (2, 4)
_SMALL_BLOCK_BYTES: Final = 1024 * 1024
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def allocator_environment() -> dict[str, str]:
    """Environment variables of a server and its processes (mallopt(3)).

    By default glibc returns freed blocks of a tensor's size to the kernel, and the next tensor costs page faults. Kept
    blocks save a third of the processor time outside of the network. glibc also makes up to eight arenas per core; each
    grows to its peak, and its blocks are seldom in a cache. A few arenas hold less and are faster.
    """
    return {
        "MALLOC_ARENA_MAX": str(_arenas()),
        "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BLOCK_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    }


def keep_large_blocks() -> None:
    """The settings of :func:`allocator_environment` in this process; to be called before it makes threads."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, _arenas())
    libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _arenas() -> int:
    low, high = _ARENAS
    return max(low, min(high, usable_cpus() // 4))


def give_large_blocks_back() -> None:
    """In this process, return freed blocks above a megabyte to the kernel, as glibc does by default.

    For a process that receives large data but does not work on it.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALL_BLOCK_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, 4 * _SMALL_BLOCK_BYTES)
