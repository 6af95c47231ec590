"""Watches a running server: replaces processes of its Python backend that died, and finds what hangs."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Final

from serving.errors import ServingError
from serving.server import TritonServer
from serving.stubs import Stub, StubWatch
from serving.supervisor import RestartPolicy, wait_for_end

HANG_S: Final = 30.0
"""Requests that wait this long while nothing moves, and a server that is silent so long, are taken for a hang."""

MOST_REPLACED: Final = 16
"""So often processes are replaced before the server itself is started again, which takes three seconds.

A request that fails with "Stub process is not healthy" is never released (seen on 2.51), nor is the model that it went
to: tritonserver keeps 35 threads and the shared memory of every instance of it. Compose's limits allow for that.
"""

_LOOK_S: Final = 0.25
_METRICS_EVERY_S: Final = 5.0
_METRICS_TIMEOUT_S: Final = 5.0
_COUNTS: Final = re.compile(
    r'^nv_inference_(pending_request_count|exec_count|request_failure)\{[^}]*model="([^"]+)"[^}]*\} (\S+)$',
    re.MULTILINE,
)


def watch_over(server: TritonServer, policy: RestartPolicy, say: Callable[[str], None], hang_s: float = HANG_S) -> str:
    """Keep a server whole until it dies.

    Processes of the Python backend that died are replaced; the policy says after which pauses, and after how many
    deaths in a row the whole server is given another start. So is a server that does not answer.

    Args:
        server: it must be ready.
        policy: of restarts; with none, nothing is replaced either.
        say: gets a line about every death and replacement.
        hang_s: see :data:`HANG_S`.

    Returns:
        What the server died of.
    """
    if not policy.restarts:
        return wait_for_end(server)
    keeper = StubKeeper(StubWatch(server), policy, say)
    health = Health(server, hang_s, say)
    while True:
        try:
            return wait_for_end(server, _LOOK_S)
        except subprocess.TimeoutExpired:
            pass
        trouble = keeper.look() or health.look(keeper.watch)
        if trouble is not None:
            # Not asked to end: its callers would have to wait for what hangs.
            if server.pid is not None:
                os.kill(server.pid, signal.SIGKILL)
            return trouble


class StubKeeper:
    """Replaces stubs that died: at once the first time, then after longer and longer pauses.

    Args:
        watch: of the server.
        policy: pauses, and how many deaths in a row are too many.
        say: gets a line about every replacement.
    """

    def __init__(self, watch: StubWatch, policy: RestartPolicy, say: Callable[[str], None]) -> None:
        self.watch = watch
        self._policy, self._say = policy, say
        self._deaths: dict[str, int] = {}  # model to its deaths in a row
        self._replaced: dict[str, float] = {}  # model to when
        self._due: dict[str, float] = {}  # model to when it is to be replaced
        self._replacements = 0

    def look(self) -> str | None:
        """Look once, and replace what is due.

        Returns:
            Why the server must be started again; None if it need not.
        """
        now = time.monotonic()
        try:
            dead = {stub.model: stub for stub in self.watch.poll()}
        except ServingError as error:
            return str(error)
        for model, stub in dead.items():
            if model not in self._due:
                steady = now - self._replaced.get(model, float("-inf")) >= self._policy.steady_s
                deaths = self._deaths[model] = 1 if steady else self._deaths[model] + 1
                if deaths > self._policy.restarts:
                    return f"processes of {model} died {deaths} times in a row"
                self._due[model] = now + (self._policy.pause_s(deaths - 1) if deaths > 1 else 0.0)
            if now >= self._due[model]:
                trouble = self._replace(stub)
                if trouble is not None:
                    return trouble
        return None

    def _replace(self, stub: Stub) -> str | None:
        if self._replacements >= MOST_REPLACED:
            count = self._replacements + 1
            return f"{stub.title} died, the {count}th since tritonserver was started"
        self._replacements += 1
        started = time.monotonic()
        try:
            self.watch.replace(stub)
        except ServingError as error:
            return f"{stub.title} died, and {error}"
        del self._due[stub.model]
        self._replaced[stub.model] = ended = time.monotonic()
        took_s = ended - started
        self._say(f"{stub.title} died; the model was loaded again in {took_s:.1f} s")
        return None


class Health:
    """Finds a server that does not answer, and models that hang.

    Args:
        server: the server.
        hang_s: see :data:`HANG_S`.
        say: gets a line about every model that hangs.
    """

    def __init__(self, server: TritonServer, hang_s: float, say: Callable[[str], None]) -> None:
        self._server, self._hang_s, self._say = server, hang_s, say
        self._stalls = StallWatch(hang_s)
        self._answered = self._looked = time.monotonic()

    def look(self, stubs: StubWatch) -> str | None:
        """Look every few seconds; the stubs of a model that hangs are killed.

        Returns:
            Why the server must be started again; None if it need not.
        """
        if time.monotonic() - self._looked < min(_METRICS_EVERY_S, self._hang_s / 3):
            return None
        metrics = _metrics(self._server.metrics_url)
        self._looked = now = time.monotonic()
        if metrics is None:
            silent_s = now - self._answered
            return f"tritonserver has not answered for {silent_s:.0f} s" if silent_s >= self._hang_s else None
        self._answered = now
        for model in self._stalls.stalled(metrics, now):
            what = f"requests to {model} have waited for {self._hang_s:g} s and nothing moves"
            if not stubs.kill(model):
                return what
            self._say(f"{what}; its processes were killed")
            self._stalls = StallWatch(self._hang_s)
        return None


class StallWatch:
    """Finds models in which nothing moves though requests wait, out of the server's metrics.

    Args:
        after_s: how long that must last, in seconds.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._moved: dict[str, tuple[float, float]] = {}  # model to its executions and failures, and when they changed

    def stalled(self, metrics: str, now: float) -> list[str]:
        """Look once.

        Args:
            metrics: text of ``/metrics``.
            now: of a clock that only rises, in seconds.

        Returns:
            Names of the models.
        """
        waiting: dict[str, float] = {}
        done: dict[str, float] = {}
        for name, model, value in _COUNTS.findall(metrics):
            counts = waiting if name == "pending_request_count" else done
            counts[model] = counts.get(model, 0.0) + float(value)
        for model, count in waiting.items():
            progress = done.get(model, 0.0)
            if not count or self._moved.get(model, (-1.0, 0.0))[0] != progress:
                self._moved[model] = (progress, now)
        return [model for model, count in waiting.items() if count and now - self._moved[model][1] >= self._after_s]


def _metrics(url: str) -> str | None:
    host, _, port = url.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_METRICS_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
