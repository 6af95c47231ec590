"""One step of a comparison, in a process of its own: ``python -m load.step SPEC.json RESULT.json``.

Locust patches the standard library of the process that it runs in; this one ends with the step.
"""

from __future__ import annotations

from load.users import USER_CLASSES, SegmentationUser, Session  # isort: skip  # patches the standard library: first

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import cv2
import gevent
from locust.env import Environment

from load.options import UserOptions
from load.payloads import read
from load.step_spec import StepSpec

_POLL_S: Final = 0.2
_GONE_S: Final = 5.0
"""A server that has answered nothing for so long, while connections are refused, has gone: the step ends."""


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
    user_class = USER_CLASSES[spec.protocol]
    payloads = tuple(read(spec.payloads))
    rate = spec.rate / spec.users if spec.rate is not None else None
    session = Session({spec.protocol: spec.url}, spec.precision, payloads, spec.options, rate, spec.seed)
    SegmentationUser.session = session
    recorder = _Recorder()
    environment = Environment(user_classes=[user_class], stop_timeout=session.stop_timeout_s)
    environment.events.request.add_listener(recorder)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    runner.start(spec.users, spawn_rate=min(spec.users, 100))
    while runner.user_count < spec.users and not recorder.server_is_gone:
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


def main(arguments: list[str]) -> int:
    """Read a specification, run it, write what happened."""
    spec_path, result_path = map(Path, arguments)
    values = json.loads(spec_path.read_text(encoding="utf-8"))
    options = values.pop("options")
    options["images"] = None  # the payloads are read from their own folder
    for name in ("megapixels", "batch_sizes", "think_time_s"):
        options[name] = tuple(options[name])
    values["payloads"] = Path(values["payloads"])
    fields = {field.name for field in dataclasses.fields(StepSpec)} - {"options"}
    spec = StepSpec(options=UserOptions(**options), **{name: values[name] for name in fields})
    result_path.write_text(json.dumps(run(spec)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The result is written; gRPC's own threads can outlive an orderly end.
    os._exit(status)
