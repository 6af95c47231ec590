"""Locust users that send images to ``segment_<precision>`` over gRPC and HTTP, and check what comes back.

Greenlets and gRPC: gRPC's core blocks in C, where gevent cannot switch, so one waiting request would stop all users.
``init_gevent`` makes the core wait on gevent's loop instead; it has to run before the first channel is made
(grpc/grpc, ``grpc.experimental.gevent``), and blocking stubs must be used. tritonclient's HTTP client runs on gevent
by itself; every connection is used by one greenlet at a time.
"""

from __future__ import annotations

import locust  # isort: skip  # patches the standard library for gevent: before everything else

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import gevent
import gevent.pool
from grpc.experimental import gevent as grpc_gevent
from locust.env import Environment

from client.errors import RequestTimeoutError, SegmentationError, ServerUnavailableError
from client.request import Request, Tensors
from client.transport import Transport
from load.errors import LoadError
from load.options import UserOptions
from load.payloads import Payload
from load.validation import fault_of
from pipeline import contract

grpc_gevent.init_gevent()

UNAVAILABLE_PAUSE_S: Final = 0.25
"""After a refused connection, so that a server that is gone is not called thousands of times a second."""

MAX_IN_FLIGHT: Final = 512
"""Open-loop requests in flight per user; arrivals above it count as failures, so that memory stays bounded."""


class WrongAnswer(SegmentationError):
    """The server reported success, but the result is wrong."""


class NotSent(SegmentationError):
    """An arrival found too many requests in flight."""


@dataclass(frozen=True)
class Session:
    """Settings that all users of this process share."""

    urls: dict[str, str]  # protocol to ``host:port``
    precision: str  # which ensemble to call
    payloads: tuple[Payload, ...]  # what to send
    options: UserOptions  # how to behave
    # Open loop: mean requests per second of each user, at random times (Poisson), sent whether or not earlier ones are
    # answered. None: closed loop, a user waits for its answer.
    arrivals_per_second: float | None = None
    seed: int = 0  # of the order of images, and of arrivals

    @property
    def stop_timeout_s(self) -> float:
        """How long users may take to finish their last request."""
        return self.options.timeout_s + 5.0


class SegmentationUser(locust.User):
    """One simulated user; its subclasses name the protocol.

    Every request, answered, refused or wrong, is reported by one event with the time from sending it (open loop: from
    when it was due) until the whole answer has arrived; checking the answer is not part of the time.
    """

    abstract = True
    protocol: ClassVar[str]
    session: ClassVar[Session | None] = None
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        session = SegmentationUser.session
        if session is None:
            raise LoadError(f"{type(self).__name__} has no session; it is made when a test starts (load/locustfile.py)")
        self._session = session
        self._random = random.Random(session.seed * 10_007 + next(self._numbers))  # noqa: S311 - an order, no secret
        start = self._random.randrange(len(session.payloads))
        self._payloads = itertools.islice(itertools.cycle(session.payloads), start, None)
        self._batch_sizes = itertools.cycle(session.options.batch_sizes)
        self._idle: list[Transport] = []
        self._flights = gevent.pool.Pool()
        self._due: float | None = None

    def wait_time(self) -> float:
        """Seconds until the next request: think time, or the time until the next arrival."""
        if self._due is not None:
            return max(0.0, self._due - time.perf_counter())
        low, high = self._session.options.think_time_s
        return self._random.uniform(low, high)

    @locust.task
    def segment(self) -> None:
        """Send one request; in an open loop, without waiting for its answer."""
        rate = self._session.arrivals_per_second
        if rate is None:
            self._request(self._draw(), None)
            return
        now = time.perf_counter()
        if self._due is not None and self._due <= now:
            draw = self._draw()
            if len(self._flights) >= MAX_IN_FLIGHT:
                self._report(draw, self._due, time.time(), NotSent(f"{MAX_IN_FLIGHT} requests are in flight"), 0)
            else:
                self._flights.spawn(self._request, draw, self._due)
        self._due = (now if self._due is None else self._due) + self._random.expovariate(rate)

    def on_stop(self) -> None:
        """Let requests in flight end, then close the connections."""
        self._flights.join(timeout=self._session.stop_timeout_s)
        self._flights.kill()
        for sender in self._idle:
            sender.close()
        self._idle.clear()

    def _draw(self) -> list[Payload]:
        return list(itertools.islice(self._payloads, next(self._batch_sizes)))

    def _request(self, payloads: list[Payload], due: float | None) -> None:
        session = self._session
        parameters = session.options.parameters or {}
        request = Request(
            tuple(payload.data for payload in payloads), tuple(payload.name for payload in payloads), parameters
        )
        tensor = request.tensor()
        url, timeout_s = session.urls[self.protocol], session.options.timeout_s
        sender = self._idle.pop() if self._idle else Transport(self.protocol, url, timeout_s)
        failure: Exception | None = None
        tensors: Tensors = {}
        wall, begun = time.time(), time.perf_counter() if due is None else due
        try:
            tensors = sender.infer(contract.ensemble_model(session.precision), tensor, parameters)
        except Exception as error:
            # A request that fails, for any reason, is counted.
            failure = error
        ended = time.perf_counter()
        self._idle.append(sender)
        failure = failure or self._fault(request, tensors, payloads)
        size = sum(array.nbytes for array in tensors.values())
        self._report(payloads, begun, wall, failure, size, ended)
        if isinstance(failure, ServerUnavailableError):
            gevent.sleep(UNAVAILABLE_PAUSE_S)

    def _fault(self, request: Request, tensors: Tensors, payloads: list[Payload]) -> Exception | None:
        try:
            results = request.parse(tensors)
        except SegmentationError as error:
            return WrongAnswer(str(error))
        tolerance = self._session.options.tolerance
        pairs = zip(results, payloads, strict=True)
        faults = (fault for result, payload in pairs if (fault := fault_of(result, payload, tolerance)))
        fault = next(faults, None)
        return WrongAnswer(fault) if fault else None

    def _report(
        self,
        payloads: list[Payload],
        begun: float,
        wall: float,
        failure: Exception | None,
        size: int,
        ended: float | None = None,
    ) -> None:
        """Report a request to Locust."""
        ended = time.perf_counter() if ended is None else ended
        if failure is not None:
            # Locust keeps the exception, whose frames would keep the connection open until the interpreter ends.
            # gRPC's channels can hang then, because gevent's loop has ended.
            failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=contract.ensemble_model(self._session.precision),
            response_time=(ended - begun) * 1e3,
            response_length=size,
            exception=failure,
            context={"images": len(payloads), "kind": kind_of(failure), "begun": begun, "ended": ended},
            start_time=wall,
        )


class GrpcUser(SegmentationUser):
    """Calls over gRPC."""

    protocol = "grpc"


class HttpUser(SegmentationUser):
    """Calls over HTTP."""

    protocol = "http"


USER_CLASSES: Final[dict[str, type[SegmentationUser]]] = {"grpc": GrpcUser, "http": HttpUser}

_KINDS: Final[dict[type[Exception], str]] = {
    WrongAnswer: "wrong",
    RequestTimeoutError: "timeout",
    ServerUnavailableError: "unavailable",
    NotSent: "not_sent",
}


def kind_of(failure: Exception | None) -> str:
    """Outcome of a request: ``ok``, ``wrong``, ``timeout``, ``unavailable``, ``not_sent`` or ``refused``."""
    if failure is None:
        return "ok"
    return next((kind for error, kind in _KINDS.items() if isinstance(failure, error)), "refused")
