"""The gateway in front of tritonserver: listens on the HTTP port, and runs ``python -m gateway`` behind the socket.

Some request bodies to the HTTP API of an older tritonserver end its process (CVE-2025-23310, -23311, -23325; fixed in
25.07). It is off there, and callers speak HTTP with the gateway.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline import contract
from repository.live import LiveError, LiveServer
from serving.errors import PortInUse
from serving.lifetime import end_with
from serving.private_files import PRIVATE_UMASK
from serving.restarts import RestartPolicy

_ROOT: Final = Path(__file__).resolve().parent.parent
_END_S: Final = 15.0
_PROBE_EVERY_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 1.0
_POLICY: Final = RestartPolicy(first_s=0.5)


class HttpFront:
    """The listening socket and the gateway's process. Connections outlive the process: they wait for the next one.

    Args:
        host: IPv4 address to listen on.
        port: 0 takes a free one.
        log: gets each line of the gateway's log, and of its deaths.
        api_key_file: holds the key that callers must send; None asks for none.

    Raises:
        PortInUse: something listens on the port.

    Attributes:
        port: that is listened on.
    """

    def __init__(self, host: str, port: int, log: Callable[[str], None], api_key_file: Path | None = None) -> None:
        try:
            self._listener = socket.create_server((host, port), backlog=1024)
        except OSError as error:
            raise PortInUse(
                f"port {port} on {host} is in use ({error}); choose another one with --http-port"
            ) from error
        self.port = int(self._listener.getsockname()[1])
        self._log = log
        self._key = [] if api_key_file is None else [f"--api-key-file={api_key_file.resolve()}"]
        self._grpc_url = ""
        self._process: subprocess.Popen[str] | None = None
        self._started = self._due = self._answered = self._probed = 0.0
        self._deaths = 0

    @property
    def pid(self) -> int | None:
        """Process number of the gateway; None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, grpc_url: str) -> None:
        """Start the gateway, unless it runs already.

        Args:
            grpc_url: host and port of tritonserver; the same at every call.
        """
        self._grpc_url = grpc_url
        if self.pid is not None:
            return
        descriptor = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "run", f"--grpc-url={grpc_url}", f"--http-fd={descriptor}", *self._key],
            env={**os.environ, "PYTHONSAFEPATH": ""},
            cwd=_ROOT,  # where this project lies, installed or not
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            umask=PRIVATE_UMASK,
            preexec_fn=functools.partial(end_with, os.getpid()),  # noqa: PLW1509 - two system calls, no locks
        )
        self._started = self._answered = self._probed = time.monotonic()
        threading.Thread(target=self._read_log, args=(self._process,), daemon=True).start()

    def look(self, hang_s: float) -> None:
        """Start the gateway again if it ended, with growing pauses; kill it if it is silent.

        Args:
            hang_s: how long it may be silent, in seconds.
        """
        now = time.monotonic()
        if self.pid is None:
            if not self._due:
                self._deaths = 1 if now - self._started >= _POLICY.steady_s else self._deaths + 1
                pause_s = _POLICY.pause_s(self._deaths - 1) if self._deaths > 1 else 0.0
                self._due = now + pause_s
                status = self._process.returncode if self._process is not None else None
                self._log(f"the HTTP front ended (status {status}); starting it again in {pause_s:.1f} s")
            if now >= self._due:
                self._due = 0.0
                self.start(self._grpc_url)
        elif now - self._probed >= _PROBE_EVERY_S:
            self._probed = now
            if self._answers():
                self._answered = now
            elif now - self._answered >= hang_s:
                self._log(f"the HTTP front has not answered for {now - self._answered:.0f} s; killing it")
                self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the gateway, after the requests in flight, and listen no more."""
        self._listener.close()
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        """Whether the gateway answers anything, whatever tritonserver does."""
        host, port = self._listener.getsockname()[:2]
        try:
            with socket.create_connection((host, port), _PROBE_TIMEOUT_S) as probe:
                probe.sendall(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
                return probe.recv(5) == b"HTTP/"
        except OSError:
            return False

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._log(line.rstrip("\n"))


def knows_secret(grpc_url: str, admin_secret: str) -> bool:
    """Whether this user's server at an address opens its control API to a secret: another one on the port does not."""
    try:
        with LiveServer(grpc_url, admin_secret, answer_timeout_s=5.0, own=True) as live:
            live.ready_versions(contract.ADMISSION_MODEL)
    except LiveError:
        return False
    return True
