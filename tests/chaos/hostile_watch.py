"""Beside hostile inputs: photographs that must be answered, and senders that never finish."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import numpy as np

from client import RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from pipeline.result import Segmentation
from serving.server import TritonServer
from tests.chaos import protocol
from tests.chaos.background import Background
from tests.chaos.expected import fingerprint

PROMPT_S: Final = 5.0
"""A photograph sent between the hostile inputs must be answered within this time."""

BOX_PIXELS: Final = 2.0
"""How far a box may move where answers are not equal to the bit."""

MEMORY_GROWTH: Final = 0.10
"""Of all processes together, from after everything was sent once to the end."""

_MORE_DESCRIPTORS: Final = 16  # connections that the server has not seen end yet
_DRIBBLERS: Final = 3


class Watcher(Background):
    """Sends a photograph every second, over both protocols in turn, and compares the answer (``exact``: to the bit).

    Attributes:
        seconds: how long each took.
        faults: what was not as promised.
    """

    def __init__(self, server: TritonServer, precision: str, photograph: bytes, exact: bool = True) -> None:
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self._clients = [
            SegmentationClient(server.grpc_url, "grpc", precision, retry=RetryPolicy(retries=0)),
            SegmentationClient(server.http_url, "http", precision, retry=RetryPolicy(retries=0)),
        ]
        self._photograph = photograph
        self._exact, self._first = exact, self._clients[0].segment(photograph)
        super().__init__(self._watch)

    def _watch(self) -> None:
        while not self.stopped.wait(1.0):
            self._look(self._clients[len(self.seconds) % 2])
        for client in self._clients:
            client.close()

    def _look(self, client: SegmentationClient) -> None:
        started = time.monotonic()
        try:
            if not self._is_same(client.segment(self._photograph)):
                self.faults.append("an ordinary photograph was answered differently meanwhile")
        except SegmentationError as error:
            self.faults.append(f"an ordinary photograph failed meanwhile: {error}")
        self.seconds.append(time.monotonic() - started)
        if self.seconds[-1] > PROMPT_S:
            self.faults.append(f"an ordinary photograph took {self.seconds[-1]:.1f} s meanwhile")

    def _is_same(self, answer: Segmentation) -> bool:
        if self._exact:
            return fingerprint(answer) == fingerprint(self._first)
        return len(answer) == len(self._first) and np.allclose(answer.boxes, self._first.boxes, rtol=0, atol=BOX_PIXELS)


class Dribblers(Background):
    """A few connections that send a byte now and then, and never finish."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(*[self._dribble] * _DRIBBLERS)

    def _dribble(self) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(OSError):
                protocol.dribble(self._url, 5.0)


def resource_faults(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What is left behind that should not be."""
    faults = []
    for name in ("memory_mib", "shared_memory_mib"):
        if after[name] > (1 + MEMORY_GROWTH) * before[name]:
            faults.append(f"{name} grew from {before[name]:.0f} to {after[name]:.0f}")
    for name, more in (("file_descriptors", _MORE_DESCRIPTORS), ("shared_memory_regions", 0)):
        if after[name] > before[name] + more:
            faults.append(f"{name} grew from {before[name]:.0f} to {after[name]:.0f}")
    return faults
