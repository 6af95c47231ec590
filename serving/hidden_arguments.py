"""Starts a program with arguments that other users of the machine cannot see.

Any user can read the arguments of any process (``/proc/PID/cmdline``), but its environment only if it is their own
process. tritonserver takes the secret from its arguments alone. So it is started with stand-ins in their place, and the
arguments themselves lie in environment variables. The kernel stops it before its first instruction (ptrace(2),
``PTRACE_TRACEME``), and its lists of pointers are changed: from the stand-ins to the variables' values. What ``/proc``
shows is the range of memory that the arguments had at the start, which never holds the secret.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

STAND_IN: Final = "hidden"

_VARIABLE: Final = "HIDDEN_ARGUMENT_"
_PTRACE_TRACEME, _PTRACE_DETACH = 0, 17  # linux/ptrace.h
_START_STACK, _ARG_START, _ENV_START = 28, 48, 50  # fields of /proc/PID/stat, counted from 1 (proc(5))

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_LIBC.ptrace.restype = ctypes.c_long


class CannotHide(Exception):
    """The kernel does not let a process change the arguments of its child."""


def start_hidden(
    command: Sequence[str], secret: str, environment: Mapping[str, str], prepare: Callable[[], None], **options: Any
) -> subprocess.Popen[str]:
    """Start a program; arguments that hold the secret are seen as :data:`STAND_IN` in its place.

    Only this user can read the secret, from ``/proc/PID/environ``. Processes that the program starts do not inherit it.

    Args:
        command: program and arguments. A program that passes its arguments on to another one shows them.
        secret: what nobody else may read.
        environment: environment variables.
        prepare: runs in the child before the program, without locks.
        options: of :class:`subprocess.Popen`.

    Raises:
        CannotHide: not possible here; the program has not run.
        OSError: the program cannot be started.

    Example:
        >>> with start_hidden(["sleep", "0.001"], "0.001", os.environ, lambda: None) as process:
        ...     Path(f"/proc/{process.pid}/cmdline").read_bytes()
        b'sleep\\x00hidden\\x00'
    """

    def prepare_child() -> None:
        prepare()
        if _LIBC.ptrace(_PTRACE_TRACEME, 0, None, None):
            raise OSError(ctypes.get_errno())

    shown = [argument.replace(secret, STAND_IN) for argument in command]
    hidden = {index: argument for index, argument in enumerate(command) if secret in argument}
    try:
        process = subprocess.Popen(
            shown,
            env={**environment, **{f"{_VARIABLE}{index}": argument for index, argument in hidden.items()}},
            preexec_fn=prepare_child,  # noqa: PLW1509 - system calls, no locks
            **options,
        )
    except subprocess.SubprocessError as error:
        raise CannotHide("ptrace(2) is not allowed") from error
    try:
        _, status = os.waitpid(process.pid, 0)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
            raise CannotHide(f"the new process did not stop as asked (status {status:#x})")
        try:
            _swap(process.pid, {index - len(command): f"{_VARIABLE}{index}=".encode() for index in hidden})
        except (OSError, struct.error) as error:
            raise CannotHide(f"the memory of the new process cannot be changed ({error})") from error
        if _LIBC.ptrace(_PTRACE_DETACH, process.pid, None, None):
            raise CannotHide(f"the new process cannot be continued ({os.strerror(ctypes.get_errno())})")
    except BaseException:
        with process:
            process.kill()
        raise
    return process


def _swap(pid: int, variables: Mapping[int, bytes]) -> None:
    """In a process that stands before its first instruction, point arguments at the values of environment variables.

    The stack begins with the number of arguments, a pointer to each, zero, one to each environment variable, zero.

    Args:
        pid: its number.
        variables: which argument, -1 for the last (a script has others in front), to how the variable begins.
    """
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    stack, arg_start, env_start = (int(fields[number - 3]) for number in (_START_STACK, _ARG_START, _ENV_START))
    arguments = _places(arg_start, (process / "cmdline").read_bytes())
    environment = _places(env_start, (process / "environ").read_bytes())
    found = [len(arguments), *(place for _, place in arguments), 0, *(place for _, place in environment), 0]
    form = f"{len(found)}N"
    with (process / "mem").open("r+b", buffering=0) as memory:
        memory.seek(stack)
        if list(struct.unpack(form, memory.read(struct.calcsize(form)))) != found:
            raise CannotHide("the stack of the new process is not as expected")
        for index, name in variables.items():
            variable = next(place for text, place in environment if text.startswith(name))
            # Children get another variable twice instead of this one; the list itself cannot become shorter.
            found[found.index(variable)] = environment[0][1]
            found[1 + len(arguments) + index] = variable + len(name)
        memory.seek(stack)
        memory.write(struct.pack(form, *found))


def _places(start: int, block: bytes) -> list[tuple[bytes, int]]:
    """The strings that lie one behind the other from an address on, each ended by a zero, with their addresses."""
    places = []
    for text in block.split(b"\0")[:-1]:
        places.append((text, start))
        start += len(text) + 1
    return places
