"""The soak's callers: blocking and asynchronous, gRPC and HTTP, one image and several, a share of bad input.

At most eight images (``steps.admission.FLOOR_IMAGES``) are under way at once, which the server never refuses: the
soak is no overload.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from client import AsyncSegmentationClient, RequestError, RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from client.request import Request
from client.transport import AsyncTransport, Transport
from pipeline import contract
from tests.chaos.expected import BAD_INPUT, Case, fingerprint

BAD_SHARE: Final = 0.05
_TIMEOUT_S: Final = 30.0
_NO_RETRY: Final = RetryPolicy(retries=0)
_BATCH: Final = 3
_WARM_UP_ROUNDS: Final = 3


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

    Args:
        url: of the server's gRPC endpoint.
        cases: what is asked.

    Raises:
        SegmentationError: a request failed.
    """
    asyncio.run(_warm_up(url, [max(cases, key=lambda case: len(case.data)).data] * _BATCH))


async def _warm_up(url: str, images: Sequence[bytes]) -> None:
    for precision in contract.PRECISIONS:
        async with AsyncSegmentationClient(url, "grpc", precision, _TIMEOUT_S, _NO_RETRY) as client:
            for _ in range(_WARM_UP_ROUNDS):
                await asyncio.gather(*(client.segment_batch(images) for _ in range(2)))


class Traffic:
    """Requests without a pause, from a fixed number of callers, from ``with`` to its end.

    Args:
        urls: protocol to where they go.
        cases: what is asked.
        seed: of what is asked when.

    Attributes:
        outcomes: one per request.
        crashes: what ended a caller early; there should be none.
    """

    def __init__(self, urls: dict[str, str], cases: Sequence[Case], seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self.crashes: list[str] = []
        self._cases, self._seed = cases, seed
        self._urls = urls
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(self._blocking, f"{protocol}, {what}", protocol, size))
            for protocol, what, size in (("grpc", "blocking", 1), ("http", "blocking", 1), ("grpc", "batches", _BATCH))
        ]
        self._threads.append(threading.Thread(target=self._guard, args=(self._asynchronous,)))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_S)
        self.crashes += [f"{thread.name} hangs" for thread in self._threads if thread.is_alive()]

    def _guard(self, target: Any, *arguments: Any) -> None:
        try:
            target(*arguments)
        except Exception as error:  # whatever it is, it is a fault
            self.crashes.append(f"a caller ended: {error!r}")

    def _blocking(self, kind: str, protocol: str, size: int) -> None:
        chance = random.Random(f"{self._seed} {kind}")  # noqa: S311 - no secret
        url = self._urls[protocol]
        clients = {name: SegmentationClient(url, protocol, name, _TIMEOUT_S, _NO_RETRY) for name in contract.PRECISIONS}
        raw = Transport(protocol, url, _TIMEOUT_S)
        while not self._stop.is_set():
            plan = self._next(chance, size)
            started = time.monotonic()
            try:
                if plan.bad is not None:  # past the client's own checks
                    request = Request(plan.images, (plan.bad,), plan.parameters)
                    raw.infer(contract.ensemble_model(plan.precision), request.tensor(), plan.parameters)
                    found = []
                else:
                    found = clients[plan.precision].segment_batch(plan.images, **_arguments(plan.parameters))
                self._answered(kind, plan, started, found)
            except SegmentationError as error:
                self._failed(kind, plan, started, error)
        raw.close()
        for client in clients.values():
            client.close()

    def _asynchronous(self) -> None:
        asyncio.run(self._callers())

    async def _callers(self) -> None:
        await asyncio.gather(*(self._coroutine(f"{name}, asynchronous", name) for name in ("grpc", "http")))

    async def _coroutine(self, kind: str, protocol: str) -> None:
        chance = random.Random(f"{self._seed} {kind}")  # noqa: S311 - no secret
        url = self._urls[protocol]
        clients = {
            name: AsyncSegmentationClient(url, protocol, name, _TIMEOUT_S, _NO_RETRY) for name in contract.PRECISIONS
        }
        raw = AsyncTransport(protocol, url, _TIMEOUT_S)
        while not self._stop.is_set():
            plan = self._next(chance, 1)
            started = time.monotonic()
            try:
                if plan.bad is not None:
                    request = Request(plan.images, (plan.bad,), plan.parameters)
                    await raw.infer(contract.ensemble_model(plan.precision), request.tensor(), plan.parameters)
                    found = []
                else:
                    found = await clients[plan.precision].segment_batch(plan.images, **_arguments(plan.parameters))
                self._answered(kind, plan, started, found)
            except SegmentationError as error:
                self._failed(kind, plan, started, error)
        await raw.close()
        for client in clients.values():
            await client.close()

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

    def _answered(self, kind: str, plan: _Plan, started: float, found: Sequence[Any]) -> None:
        ended = time.monotonic()
        answers = tuple(fingerprint(one) for one in found)
        self.outcomes.append(Outcome(kind, plan.precision, started, ended, plan.cases, answers, plan.bad))

    def _failed(self, kind: str, plan: _Plan, started: float, error: SegmentationError) -> None:
        meant = plan.bad is not None and isinstance(error, RequestError)
        text = f"{type(error).__name__}: {error}"
        ended = time.monotonic()
        self.outcomes.append(Outcome(kind, plan.precision, started, ended, plan.cases, (), plan.bad, text, meant))


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """A request's parameters as the client's methods take them."""
    arguments = dict(parameters)
    if "classes" in arguments:
        arguments["classes"] = [int(text) for text in arguments["classes"].split(",")]
    return arguments
