"""For Locust's own command line, its web page, and distributed runs (workers take their options from the master).

locust -f load/locustfile.py                                            # web page on port 8089
locust -f load/locustfile.py GrpcUser --headless -u 4 -t 30s --precision int8
locust -f load/locustfile.py --master --headless --expect-workers 2 -u 4 -t 30s
locust -f load/locustfile.py --worker                                   # on each machine
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
from pathlib import Path
from typing import Any, Final

# Locust puts the working folder first, where another project's modules of the same names may lie.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gevent
from locust import events
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from load.errors import LoadError
from load.options import UserOptions, add_url_arguments, add_user_arguments, checked_url_of
from load.payloads import Payload, check_ready, is_ready, load_payloads, with_expectations
from load.users import GrpcUser, HttpUser, SegmentationUser, Session
from pipeline import contract
from pipeline.command_line import printable

__all__ = ["GrpcUser", "HttpUser"]

_log = logging.getLogger(__name__)
_READY_ATTEMPTS: Final = 50
_READY_PAUSE_S: Final = 0.1
_stopping: set[MasterRunner] = set()
_asked: dict[str, tuple[Payload, ...]] = {}


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("Segmentation")
    group.add_argument("--precision", default="int8", choices=contract.PRECISIONS, help="which ensemble to call")
    add_url_arguments(group, defaults=True)
    add_user_arguments(group)
    group.add_argument(
        "--arrivals-per-second", type=float, default=0.0, help="open loop: requests per second of each user (0: closed)"
    )


@events.init.add_listener  # type: ignore[untyped-decorator]
def _prepare_early(environment: Environment, **_: Any) -> None:
    """Without a web page the options are final: report what is missing at once, not after the run time has begun."""
    options = environment.parsed_options
    if options is None or not (options.headless or isinstance(environment.runner, WorkerRunner)):
        return
    try:
        if isinstance(environment.runner, WorkerRunner):
            # The master's options replace these; if they are the same, this worker is already prepared.
            with contextlib.suppress(LoadError, ValueError):
                _session(environment)
        else:
            SegmentationUser.session = _session(environment)
    except (LoadError, ValueError) as error:
        sys.exit(f"error: {error}")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Environment, **_: Any) -> None:
    """Before any user starts: check the model, read the images, and get the expected detections."""
    session = SegmentationUser.session
    try:
        if session is None or environment.web_ui is not None or isinstance(environment.runner, WorkerRunner):
            session = _session(environment)
    except (LoadError, ValueError) as error:
        SegmentationUser.session = None
        environment.process_exit_code = 1
        if isinstance(environment.runner, WorkerRunner):
            # The master reports it; without a session this worker's users do not start.
            _log.error("error: %s", printable(error))
            environment.runner.send_message("exception", {"msg": str(error), "traceback": str(error)})
            return
        raise StopTest(f"error: {error}") from error
    SegmentationUser.session = session
    # Users finish their current request, so that both sides count the same.
    environment.stop_timeout = max(environment.stop_timeout, session.stop_timeout_s)


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _ended(environment: Environment, **_: Any) -> None:
    """A worker's users have ended: report their last requests, and let it listen again at once.

    Locust's own last report comes after the worker has said that it stopped, and the master waits half a second for it;
    then the worker would wait for the stop timeout.
    """
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        report: dict[str, Any] = {}
        environment.events.report_to_master.fire(client_id=runner.client_id, data=report)  # type: ignore[no-untyped-call]
        runner.send_message("stats", report)
        environment.stop_timeout = 0.0


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def _collect(environment: Environment, **_: Any) -> None:
    """Let workers report before the master ends; at the end of the run time Locust waits half a second for them."""
    runner = environment.runner
    if not isinstance(runner, MasterRunner) or runner in _stopping:
        return
    _stopping.add(runner)
    workers = len(runner.clients)
    try:
        runner.stop()  # waits until no worker has users
        for _attempt in range(_READY_ATTEMPTS):  # a worker that is not ready again would not be sent away
            if len(runner.clients) >= workers:
                break
            gevent.sleep(_READY_PAUSE_S)
    finally:
        _stopping.remove(runner)


def _session(environment: Environment) -> Session:
    given = environment.parsed_options
    if given is None:
        raise LoadError("no options; run this file with Locust's command line")
    options = UserOptions.of(given)
    used = {user.protocol for user in environment.user_classes if issubclass(user, SegmentationUser)}
    urls = {name: checked_url_of(name, getattr(given, f"url_{name}")) for name in sorted(used)}
    for protocol, url in urls.items():
        check_ready(protocol, url, options.timeout_s, given.precision)
    if isinstance(environment.runner, MasterRunner):
        payloads = _payloads(options.images, options.megapixels)
    else:
        payloads = _expecting(options, given.precision, urls)
    arrivals = float(given.arrivals_per_second)
    if not 0 <= arrivals < math.inf:
        raise ValueError(f"arrivals per second are {arrivals}; allowed: a number from 0")
    # Each worker draws images and arrivals differently; without workers there is no index.
    seed = int(getattr(environment.runner, "worker_index", 0))
    return Session(urls, given.precision, payloads, options, arrivals or None, seed)


def _expecting(options: UserOptions, precision: str, urls: dict[str, str]) -> tuple[Payload, ...]:
    """Images with their expected detections, requested once."""
    key = f"{options} {precision} {urls}"
    if key not in _asked:
        protocol, url = next(iter(urls.items()))
        reference = "fp32" if is_ready(protocol, url, options.timeout_s, "fp32") else precision
        payloads = _payloads(options.images, options.megapixels)
        _asked[key] = with_expectations(payloads, protocol, url, reference, options)
    return _asked[key]


@functools.cache
def _payloads(images: Path | None, megapixels: tuple[float, ...]) -> tuple[Payload, ...]:
    return load_payloads(UserOptions(images=images, megapixels=megapixels))
