"""The soak's callers: blocking and asynchronous, gRPC and HTTP, one image and several, a share of bad input.

At most eight images (``steps.admission.FLOOR_IMAGES``) are under way at once, which the server never refuses: the
soak is no overload.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from client import AsyncSegmentationClient, RequestError, RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from client.request import Request
from client.transport import AsyncTransport, Transport
from pipeline import contract
from tests.chaos.background import Background
from tests.chaos.expected import BAD_INPUT, Case, fingerprint

BAD_SHARE: Final = 0.05
_TIMEOUT_S: Final = 30.0
_NO_RETRY: Final = RetryPolicy(retries=0)
_BATCH: Final = 3
_WARM_UP_ROUNDS: Final = 3
_CALLERS: Final = (
    *(("grpc", "blocking", 1), ("http", "blocking", 1), ("grpc", "batches", _BATCH)),
    *(("grpc", "asynchronous", 1), ("http", "asynchronous", 1)),
)
"""Protocol, kind of client, and most images of a request."""


@dataclass(frozen=True)
class Outcome:
    """One request and what became of it."""

    kind: str  # which client sent it
    precision: str  # which ensemble was asked
    started: float  # when it was sent, by the clock ``time.monotonic``, in seconds
    ended: float  # when its outcome was there
    cases: tuple[int, ...]  # numbers of the cases that it carried
    answers: tuple[str, ...] = ()  # fingerprints of the answers, in that order
    bad: str | None = None  # name of the bad input that it carried; None if it was a good one
    error: str | None = None  # type and text of its error; None if it was answered
    refusal_was_meant: bool = False  # whether it had to be refused, and was, as the caller's fault


@dataclass(frozen=True)
class _Plan:
    """What is sent next."""

    precision: str
    cases: tuple[int, ...]
    images: tuple[bytes, ...]
    parameters: dict[str, Any]
    bad: str | None


def warm_up(url: str, cases: Sequence[Case]) -> None:
    """Send every precision the largest request that the traffic can draw, two at once, several times.

    A process's pool of shared memory grows to the largest request that it was ever handed, and never shrinks: drawn by
    chance, that one comes after ten minutes.

    Raises:
        SegmentationError: a request failed.
    """
    asyncio.run(_warm_up(url, [max(cases, key=lambda case: len(case.data)).data] * _BATCH))


async def _warm_up(url: str, images: Sequence[bytes]) -> None:
    for precision in contract.PRECISIONS:
        async with AsyncSegmentationClient(url, "grpc", precision, _TIMEOUT_S, _NO_RETRY) as client:
            for _ in range(_WARM_UP_ROUNDS):
                await asyncio.gather(*(client.segment_batch(images) for _ in range(2)))


class Traffic(Background):
    """Requests without a pause, from a fixed number of callers, from ``with`` to its end.

    Attributes:
        outcomes: one per request.
        crashes: what ended a caller early; there should be none.
    """

    def __init__(self, urls: dict[str, str], cases: Sequence[Case], seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self.crashes: list[str] = []
        self._cases, self._seed, self._urls = cases, seed, urls
        super().__init__(*(functools.partial(self._guard, *caller) for caller in _CALLERS))

    def __exit__(self, *_: object) -> None:
        self.crashes += [f"{name} hangs" for name in self.end()]

    def _guard(self, protocol: str, how: str, size: int) -> None:
        try:
            self._call(protocol, how, size)
        except Exception as error:  # any other error is a fault
            self.crashes.append(f"a caller ended: {error!r}")

    def _call(self, protocol: str, how: str, size: int) -> None:
        """Send requests of at most ``size`` images until the end."""
        kind, url = f"{protocol}, {how}", self._urls[protocol]
        chance = random.Random(f"{self._seed} {kind}")  # noqa: S311 - no secret
        make: Any = SegmentationClient
        connect: Any = Transport
        wait: Any = _at_once
        if how == "asynchronous":
            make, connect, wait = AsyncSegmentationClient, _connected, asyncio.new_event_loop().run_until_complete
        clients = {name: make(url, protocol, name, _TIMEOUT_S, _NO_RETRY) for name in contract.PRECISIONS}
        raw = wait(connect(protocol, url, _TIMEOUT_S))
        while not self.stopped.is_set():
            plan = self._next(chance, size)
            started = time.monotonic()
            found: Sequence[Any] = ()
            error: SegmentationError | None = None
            try:
                if plan.bad is not None:  # past the client's own checks
                    tensor = Request(plan.images, (plan.bad,), plan.parameters).tensor()
                    wait(raw.infer(contract.ensemble_model(plan.precision), tensor, plan.parameters))
                else:
                    found = wait(clients[plan.precision].segment_batch(plan.images, **_arguments(plan.parameters)))
            except SegmentationError as raised:
                error = raised
            took = started, time.monotonic()
            answers = tuple(map(fingerprint, found))
            text = None if error is None else f"{type(error).__name__}: {error}"
            meant = plan.bad is not None and isinstance(error, RequestError)
            self.outcomes.append(Outcome(kind, plan.precision, *took, plan.cases, answers, plan.bad, text, meant))
        for each in (raw, *clients.values()):
            wait(each.close())

    def _next(self, chance: random.Random, size: int) -> _Plan:
        precision = chance.choice(contract.PRECISIONS)
        number = chance.randrange(len(self._cases))
        case = self._cases[number]
        if chance.random() < BAD_SHARE:
            name, data, parameters = chance.choice(BAD_INPUT)
            image = data if data or name == "nothing" else case.data
            return _Plan(precision, (), (image,), parameters, name)
        # A request has one set of parameters, so a batch is of cases that share theirs.
        same = [other for other, each in enumerate(self._cases) if each.parameters == case.parameters]
        numbers = [number, *chance.choices(same, k=chance.randrange(size))]
        return _Plan(precision, tuple(numbers), tuple(self._cases[one].data for one in numbers), case.parameters, None)


def _at_once(answer: Any) -> Any:
    """What a blocking call returned."""
    return answer


async def _connected(protocol: str, url: str, timeout_s: float) -> AsyncTransport:
    """A transport that was made where its event loop runs."""
    return AsyncTransport(protocol, url, timeout_s)


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """A request's parameters as the client's methods take them."""
    arguments = dict(parameters)
    if "classes" in arguments:
        arguments["classes"] = [int(text) for text in arguments["classes"].split(",")]
    return arguments
