"""How glibc keeps memory that is freed: what a server's processes are started with, and what one asks for itself."""

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


def allocator_environment() -> dict[str, str]:
    """Environment variables of a server and its processes (mallopt(3)).

    glibc gives blocks of a tensor's size back to the kernel when they are freed, so that the next tensor is paid for in
    page faults; kept instead, they cost a third less of the processor time outside of the network. And by default
    there are eight arenas per core, among which threads are spread: each grows to what its largest moment took, and its
    blocks are seldom those that are still in a cache. A few arenas hold less and are faster.
    """
    low, high = _ARENAS
    return {
        "MALLOC_ARENA_MAX": str(max(low, min(high, usable_cpus() // 4))),
        "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BLOCK_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    }


def give_large_blocks_back() -> None:
    """For this process only: blocks above a megabyte go back to the kernel when they are freed, as is glibc's default.

    For one that is handed large data, and does not work on it.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALL_BLOCK_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, 4 * _SMALL_BLOCK_BYTES)
