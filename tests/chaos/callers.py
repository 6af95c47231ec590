"""Traffic that notices faults, and what is recorded of a fault."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client import RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from pipeline import contract
from scenes.reference import fetch_reference
from tests.chaos.background import Background
from tests.chaos.expected import Case, Network, fingerprint
from tests.chaos.faults_service import wait_for

PRECISION: Final = "int8"
LONGEST_S: Final = 10.0
"""A caller must have its answer or an error within this time, in seconds."""

_CALLERS: Final = ("grpc", "grpc", "grpc", "http")
_SETTLED: Final = 12
_NO_RETRY: Final = RetryPolicy(retries=0)


@dataclass(frozen=True)
class Tried:
    """What became of a fault."""

    seconds: float | None  # from the fault until every request was answered again; None where nothing had to recover
    evidence: dict[str, Any]  # what was counted and quoted
    broken: list[str]  # what was not as promised


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent and settled, by ``time.monotonic``, and its error, if it had one."""

    started: float
    ended: float
    right: bool
    error: str | None = None


@dataclass(frozen=True)
class Disturbance:
    """What callers noticed of a fault."""

    under_way: int  # requests that failed and were under way when it happened
    later: int  # requests that failed and were sent later
    answered: int  # requests that were answered
    wrong: int  # of those, with another answer than the right one
    slowest_s: float  # the longest that a failed request took, in seconds
    seconds: float  # from the fault to the first answer after the last failure; 0 if nothing failed
    errors: list[str]  # the different texts of the errors

    def tried(self, allowed: str, within_s: float, *broken: str, **evidence: Any) -> Tried:
        """What became of the fault: every error must match ``allowed``, and requests be answered again ``within_s``."""
        found = [f"an error that should not be: {error}" for error in self.errors if not re.search(allowed, error)]
        if self.wrong:
            found.append(f"{self.wrong} wrong answers")
        if self.slowest_s > LONGEST_S:
            found.append(f"a caller waited {self.slowest_s:.1f} s for its error")
        if self.seconds > within_s:
            found.append(f"it took {self.seconds:.1f} s until requests were answered; allowed: {within_s:g} s")
        evidence |= {**vars(self), "failed": self.under_way + self.later}
        return Tried(self.seconds, evidence, [*found, *broken])


class Callers(Background):
    """Requests without a pause, each compared with the right answer, from ``with`` to its end.

    Args:
        urls: ``grpc`` and ``http`` to host and port.
        repository: of which version 1 answers.
    """

    def __init__(self, urls: dict[str, str], repository: Path) -> None:
        self._image = fetch_reference().photographs[0].read_bytes()
        network = repository / contract.network_model(PRECISION) / "1" / "model.onnx"
        self._right = Network(network).answer(Case("", self._image, {}))
        self._urls = urls
        self._asked: list[Asked] = []
        super().__init__(*(functools.partial(self._run, protocol) for protocol in _CALLERS))

    def disturbed_by(self, fault: Callable[[], object], until: Callable[[], object]) -> Disturbance:
        """Do something while the requests go on, until it has been fixed; a dozen answers in a row end it."""
        wait_for(lambda: self.good_since(0.0) >= _SETTLED, 30, "requests to be answered")
        at = time.monotonic()
        fault()
        until()
        settled = time.monotonic()
        wait_for(lambda: self.good_since(settled) >= _SETTLED, 60, "requests to be answered again")
        self.end()
        asked = [one for one in self._asked if one.ended >= at]
        failed = [one for one in asked if one.error is not None]
        last = max((one.started for one in failed), default=None)
        again = min((one.ended for one in asked if one.error is None and one.started > (last or 0.0)), default=at)
        return Disturbance(
            under_way=sum(one.started < at for one in failed),
            later=sum(one.started >= at for one in failed),
            answered=len(asked) - len(failed),
            wrong=sum(one.error is None and not one.right for one in self._asked),
            slowest_s=max((one.ended - one.started for one in failed), default=0.0),
            seconds=again - at if failed else 0.0,
            errors=sorted({one.error for one in failed if one.error is not None}),
        )

    @property
    def asked(self) -> list[Asked]:
        """All requests that were settled so far."""
        return list(self._asked)

    def good_since(self, moment: float) -> int:
        """Answers in a row, up to now, of requests that were sent after a moment."""
        count = 0
        for one in reversed(list(self._asked)):
            if one.error is not None or one.started < moment:
                break
            count += 1
        return count

    def _run(self, protocol: str) -> None:
        with SegmentationClient(self._urls[protocol], protocol, PRECISION, LONGEST_S, _NO_RETRY) as client:
            while not self.stopped.is_set():
                started = time.monotonic()
                try:
                    answer = fingerprint(client.segment(self._image))
                    self._asked.append(Asked(started, time.monotonic(), answer == self._right))
                except SegmentationError as error:
                    text = f"{type(error).__name__}: {without_names(str(error))}"
                    self._asked.append(Asked(started, time.monotonic(), False, text))
                    time.sleep(0.02)  # a server that is gone refuses at once


def without_names(text: str) -> str:
    """A message without what differs from run to run: addresses, instances, names of regions."""
    text = re.sub(r"\b\d+\.\d+\.\d+\.\d+:\d+", "HOST:PORT", " ".join(text.split()))
    text = re.sub(r"\b(pre|post)process_0_\d+|\bnetwork_\w+_0_\d+", "INSTANCE", text)
    return re.sub(r"segmentation_[0-9a-f]{8}_[0-9a-f-]+", "REGION", text)
