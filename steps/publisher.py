"""Counts that a process of the Python backend collects, and adds to the server's metrics once a second.

A metric of the Python backend is changed by a message to tritonserver and back, under a lock that both share, which
costs every request processor time. And a process that is killed while it holds that lock ends tritonserver too, with
``boost::interprocess::lock_exception`` (seen on 2.51; triton-inference-server/server issue 8882 has the same end under
load). So the messages are few: what changes within a second goes in one.
"""

from __future__ import annotations

import threading
from typing import Final, Protocol

PUBLISH_EVERY_S: Final = 1.0
"""How old a figure in the server's metrics may be, in seconds; Prometheus asks every five."""


class Metric(Protocol):
    """A counter of the server's, such as ``triton_python_backend_utils.Metric``."""

    def increment(self, value: float) -> None:
        """Raise it."""


class Tally:
    """What was counted since it was last handed over."""

    def __init__(self, metric: Metric, publisher: Publisher) -> None:
        self._metric, self._publisher = metric, publisher
        self._lock = threading.Lock()
        self._amount = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count; from any thread, at the cost of a lock."""
        with self._lock:
            self._amount += amount
        self._publisher.wake()

    def publish(self) -> None:
        """Hand over the amount, unless it is zero."""
        with self._lock:
            amount, self._amount = self._amount, 0.0
        if amount:
            self._metric.increment(amount)


class Publisher:
    """Adds tallies to the server's metrics, in a thread that sleeps while nothing is counted.

    Args:
        every_s: see :data:`PUBLISH_EVERY_S`.
    """

    def __init__(self, every_s: float = PUBLISH_EVERY_S) -> None:
        self._every_s = every_s
        self._tallies: list[Tally] = []
        self._counted, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def tally(self, metric: Metric) -> Tally:
        """A tally of one metric."""
        tally = Tally(metric, self)
        self._tallies.append(tally)
        return tally

    def wake(self) -> None:
        """Wake the thread: something was counted."""
        if not self._counted.is_set():
            self._counted.set()

    def close(self) -> None:
        """Hand over the last counts and end the thread."""
        self._closing.set()
        self._counted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._counted.wait()
            self._closing.wait(self._every_s)
            self._counted.clear()
            for tally in self._tallies:
                tally.publish()
