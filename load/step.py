"""One step of a comparison, in a separate process: ``python -m load.step``, the step on standard input.

Locust patches the standard library of the process that it runs in; this one ends with the step.
"""

from __future__ import annotations

from load.users import USER_CLASSES, SegmentationUser, Session  # isort: skip  # patches the standard library: first

import json
import os
import pickle
import sys
import time
from typing import Any, Final

import cv2
import gevent
from locust.env import Environment

from load.results import StepSpec

_POLL_S: Final = 0.2
_GONE_S: Final = 5.0
"""The step ends when connections are refused and nothing was answered for this long."""


class _Recorder:
    """Keeps every request that Locust reports."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, int, str]] = []
        self.first_errors: dict[str, str] = {}
        self.last_answer = time.perf_counter()
        self.unavailable = False

    def __call__(self, context: dict[str, Any], exception: Exception | None, **_: Any) -> None:
        kind = context["kind"]
        self.rows.append((context["begun"], context["ended"], context["images"], kind))
        if exception is not None:
            self.first_errors.setdefault(kind, str(exception))
        if kind == "unavailable":
            self.unavailable = True
        else:
            self.last_answer = context["ended"]

    @property
    def server_is_gone(self) -> bool:
        """Whether connections are refused and nothing has been answered for a while."""
        return self.unavailable and time.perf_counter() - self.last_answer > _GONE_S


def run(spec: StepSpec) -> dict[str, Any]:
    """Put the load of one step on the server; returns plain values for :class:`load.results.StepResult`."""
    cv2.setNumThreads(1)
    users, rate = spec.load.users, spec.load.rate / spec.load.users or None
    session = Session({spec.protocol: spec.url}, spec.precision, spec.payloads, spec.options, rate, seed=spec.round)
    SegmentationUser.session = session
    recorder = _Recorder()
    environment = Environment(user_classes=[USER_CLASSES[spec.protocol]], stop_timeout=session.stop_timeout_s)
    environment.events.request.add_listener(recorder)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=min(users, 100))
    while runner.user_count < users and not recorder.server_is_gone:
        gevent.sleep(0.01)
    opened = time.perf_counter() + spec.warm_up_s
    gevent.sleep(spec.warm_up_s)
    cpu = time.process_time()
    closed = opened + spec.duration_s
    while (now := time.perf_counter()) < closed and not recorder.server_is_gone:
        gevent.sleep(min(_POLL_S, closed - now))
    closed = min(closed, time.perf_counter())
    cpu = time.process_time() - cpu
    runner.quit()
    total = environment.stats.total
    return {
        "window_s": closed - opened,
        "client_cores": cpu / max(closed - opened, 1e-9),
        "begun_s": [round(row[0] - opened, 6) for row in recorder.rows],
        "ended_s": [round(row[1] - opened, 6) for row in recorder.rows],
        "images": [row[2] for row in recorder.rows],
        "kinds": [row[3] for row in recorder.rows],
        "first_errors": recorder.first_errors,
        "locust_requests": total.num_requests,
        "locust_failures": total.num_failures,
        "server_gone": recorder.server_is_gone,
    }


if __name__ == "__main__":
    result = run(pickle.load(sys.stdin.buffer))  # noqa: S301 - load.generator's own process wrote it
    print(json.dumps(result, allow_nan=False), flush=True)
    sys.stderr.flush()
    # gRPC's own threads can outlive an orderly end.
    os._exit(0)
