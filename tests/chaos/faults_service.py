"""``python -m serving run`` as a person starts it, for tests that look at its processes and its output."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import psutil

from repository.running import RunningServer, running_servers
from tests.processes import below

# Root needs no namespace of users, in which the server's other processes could not be looked at.
_USERS: Final = () if os.geteuid() == 0 else ("--user", "--map-root-user")
IN_OWN_MOUNTS: Final = ("unshare", *_USERS, "--mount")
"""In front of a command: it may mount file systems that only it sees (util-linux; no root needed)."""

_START_S: Final = 120.0
_END_S: Final = 40.0

_Found = TypeVar("_Found")


class Service:
    """A supervised server on free ports, from ``with`` to its end.

    Args:
        repository: the model repository.
        arguments: more of the command's options.
        wrap: command in front of it, such as :data:`IN_OWN_MOUNTS` with a script.
        program: what Python runs.

    Attributes:
        lines: what it has said so far.
        process: the command.
    """

    def __init__(
        self,
        repository: Path,
        *arguments: str,
        wrap: Sequence[str] = (),
        program: Sequence[str] = ("-m", "serving"),
    ) -> None:
        self.lines: list[str] = []
        self._repository = repository
        ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
        command = [sys.executable, *program, "run", f"--repository={repository}", *ports, *arguments]
        self.process = subprocess.Popen(
            [*wrap, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Service:
        try:
            self.wait_said("Ctrl-C stops the server", _START_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as Ctrl-C does; returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reader.join(5)

    @property
    def server(self) -> RunningServer:
        """The server that this command runs now; others may serve the same repository."""

        def own() -> RunningServer | None:
            pids = {process.pid for process in below(self.process.pid)}
            return next((server for server in running_servers(self._repository) if server.pid in pids), None)

        return wait_for(own, 10, "a running server")

    def stubs(self, model: str | None = None) -> list[psutil.Process]:
        """Live processes of the Python backend, of one model or of all."""
        found = []
        for child in below(self.server.pid):
            with contextlib.suppress(psutil.Error):
                code = next((word for word in child.cmdline() if word.endswith("/model.py")), None)
                if code is not None and model in (None, Path(code).parts[-3]):
                    found.append(child)
        return found

    def wait_said(self, pattern: str, within_s: float, times: int = 1) -> str:
        """Wait until so many lines match a pattern; returns the last of them.

        Raises:
            RuntimeError: not within the time, or it ended before.
        """

        def said() -> str | None:
            found = [line for line in list(self.lines) if re.search(pattern, line)]
            if len(found) < times and self.process.poll() is not None and not self._reader.is_alive():
                raise RuntimeError(f"it ended without saying {pattern!r}:\n{self.tail()}")
            return found[times - 1] if len(found) >= times else None

        try:
            return wait_for(said, within_s, f"{pattern!r} to be said")
        except RuntimeError as error:
            raise RuntimeError(f"{error}; it said last:\n{self.tail()}") from None

    def tail(self, count: int = 60) -> str:
        """The last lines that it said, without the tables of Triton's settings."""
        return "\n".join([line for line in self.lines if line[:1] not in ("|", "+")][-count:])

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip("\n"))


def into_mounts(pid: int) -> tuple[str, ...]:
    """In front of a command: it runs where a process that was started with :data:`IN_OWN_MOUNTS` does."""
    users = ("--user", "--preserve-credentials") if _USERS else ()
    return ("nsenter", f"--target={pid}", *users, "--mount")


def wait_for(condition: Callable[[], _Found | None], within_s: float, what: str) -> _Found:
    """Wait until a condition gives something.

    Raises:
        RuntimeError: not within the time.
    """
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {within_s:g} s for {what}")
        time.sleep(0.05)


def settled(count: Callable[[], int]) -> int:
    """A count, once it has stayed the same for two seconds: tritonserver counts a request after its answer."""
    last, since = count(), time.monotonic()
    while time.monotonic() < since + 2:
        time.sleep(0.2)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last
