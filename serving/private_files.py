"""Keeps the files of the server and its processes from other users of the machine: they hold callers' images.

A umask is not enough. Triton's Python backend makes its regions of shared memory with Boost, which sets their mode to
0644 after it has made them, whatever the umask says (``boost/interprocess/shared_memory_object.hpp``). A seccomp filter
turns such an fchmod(2) into one that does nothing: the mode of the moment of creation stays, and at no moment can
another user open a region.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from pathlib import Path
from typing import Final

PRIVATE_UMASK: Final = 0o077

_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
_SECCOMP_SET_MODE_FILTER: Final = 1  # linux/seccomp.h
_SPEC_ALLOW: Final = 1 << 2  # without it, kernels before 5.16 slow the whole process down
_RET_ALLOW: Final = 0x7FFF0000
_RET_SUCCESS: Final = 0x00050000  # SECCOMP_RET_ERRNO with error number 0
_LOAD, _JUMP_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _MODE = 0, 4, 24  # offsets in struct seccomp_data; the mode is fchmod's second argument

# Architecture (linux/audit.h), and the numbers of fchmod and seccomp there.
_CALLS: Final = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(architecture: int, fchmod: int) -> bytes:
    """``fchmod`` to a mode with bits for group or others does nothing; everything else is allowed."""
    instructions = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, fchmod),
        (_LOAD, 0, 0, _MODE),
        (_JUMP_BITS, 0, 1, PRIVATE_UMASK),
        (_RETURN, 0, 0, _RET_SUCCESS),
        (_RETURN, 0, 0, _RET_ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_ARCHITECTURE_OF_CALLS, _FCHMOD, _SECCOMP = _CALLS.get(platform.machine(), (0, 0, 0))
_INSTRUCTIONS: Final = _filter(_ARCHITECTURE_OF_CALLS, _FCHMOD)
_PROGRAM: Final = _Program(len(_INSTRUCTIONS) // 8, _INSTRUCTIONS)


def keep_files_private() -> bool:
    """From now on, no file that this process or one that it starts makes is open to other users.

    Two system calls and no locks, so that it may run between fork and exec. :class:`subprocess.Popen` sets the umask.

    Returns:
        Whether the kernel took the filter; see :func:`has_filter`.
    """
    if not _SECCOMP:
        return False
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return not _LIBC.syscall(_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(_PROGRAM))


def has_filter(pid: int) -> bool:
    """Whether a process has a seccomp filter; without one, other users can read the server's shared memory."""
    try:
        return "\nSeccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True  # it has ended already
