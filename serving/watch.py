"""Watches a running server: replaces processes of its Python backend that died, and detects hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serving.errors import ServingError
from serving.http_call import http_call
from serving.memory import MEMORY_DEATHS
from serving.restarts import RestartPolicy
from serving.server import TritonServer
from serving.stubs import Stub, StubWatch
from serving.supervisor import wait_for_end

HANG_S: Final = 30.0
"""Requests that wait this long while nothing moves, or a server that is silent this long, count as a hang."""

MOST_REPLACED: Final = 16
"""How many processes are replaced before the server itself is restarted, which takes three seconds.

A request that fails with "Stub process is not healthy" is never released (seen on 2.51), nor is the model that it went
to: tritonserver keeps 35 threads and the shared memory of every instance of it. Compose's limits allow for that.
"""

MOST_DEATHS: Final = 5
"""Deaths in a row of the processes of one model, after which the server is started again."""

_LOOK_S: Final = 0.25
_METRICS_EVERY_S: Final = 5.0
_METRICS_TIMEOUT_S: Final = 5.0
_COUNTS: Final = re.compile(
    r'^nv_inference_(pending_request_count|exec_count|request_failure)\{[^}]*model="([^"]+)"[^}]*\} (\S+)$',
    re.MULTILINE,
)


def watch_over(server: TritonServer, policy: RestartPolicy, say: Callable[[str], None]) -> str:
    """Keep a server whole until it dies.

    Processes of the Python backend that died are replaced; the policy says after which pauses, and after how many
    deaths in a row the whole server is restarted. So is a server that does not answer.

    Args:
        server: it must be ready.
        policy: of restarts; with none, nothing is replaced either.
        say: gets a line about every death and replacement.

    Returns:
        What the server died of.
    """
    if policy.restarts == 0:
        return wait_for_end(server)
    keeper = StubKeeper(StubWatch(server), policy, say)
    health = Health(server, HANG_S, say)
    while True:
        try:
            return wait_for_end(server, _LOOK_S)
        except subprocess.TimeoutExpired:
            pass
        if server.front is not None:
            server.front.look(HANG_S)
        trouble = keeper.look() or health.look(keeper.watch)
        if trouble is not None:
            # SIGTERM would make its callers wait for what hangs.
            if server.pid is not None:
                os.kill(server.pid, signal.SIGKILL)
            return trouble


@dataclass
class _Record:
    """What a model's processes did."""

    deaths: int = 0  # in a row
    replaced_at: float = float("-inf")  # when they were last replaced, in seconds
    due: float | None = None  # when they are to be replaced next, in seconds; None if they are not


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
        self._records: defaultdict[str, _Record] = defaultdict(_Record)
        self._most_deaths = MOST_DEATHS if policy.restarts is None else policy.restarts
        self._replacements = 0

    def look(self) -> str | None:
        """Look once, and replace what is due.

        Returns:
            Why the server must be restarted; None if it need not.
        """
        now = time.monotonic()
        try:
            dead = {stub.model: stub for stub in self.watch.poll()}
        except ServingError as error:
            return str(error)
        for model, stub in dead.items():
            record = self._records[model]
            if record.due is None:
                steady = now - record.replaced_at >= self._policy.steady_s
                record.deaths = 1 if steady else record.deaths + 1
                if record.deaths > self._most_deaths:
                    return f"processes of {model} died {record.deaths} times in a row"
                record.due = now + (self._policy.pause_s(record.deaths - 1) if record.deaths > 1 else 0.0)
            if now >= record.due:
                trouble = self._replace(stub, record)
                if trouble is not None:
                    return trouble
        return None

    def _replace(self, stub: Stub, record: _Record) -> str | None:
        self._replacements += 1
        if self._replacements > MOST_REPLACED:
            return f"{stub.title} died, the {self._replacements}th since tritonserver was started"
        started = time.monotonic()
        try:
            self.watch.replace(stub)
        except ServingError as error:
            return f"{stub.title} died, and {error}"
        record.due, record.replaced_at = None, time.monotonic()
        took_s = record.replaced_at - started
        self._say(f"{stub.title} died; the model was loaded again in {took_s:.1f} s{MEMORY_DEATHS.cause()}")
        return None


class Health:
    """Detects a server that does not answer, and models that hang.

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
            Why the server must be restarted; None if it need not.
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
    """Detects models in which nothing moves though requests wait, from the server's metrics.

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
    try:
        return http_call(url, "/metrics", timeout_s=_METRICS_TIMEOUT_S)[1].decode(errors="replace")
    except OSError:
        return None
