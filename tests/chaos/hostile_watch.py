"""Beside hostile inputs: photographs that must be answered, senders that never finish, and what the server keeps."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

import psutil

from base.names import SHARED_MEMORY, STATE_NAME
from client import RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from serving.server import TritonServer
from tests.chaos import protocol
from tests.chaos.expected import fingerprint

PROMPT_S: Final = 5.0
"""A photograph sent between the hostile inputs must be answered within this time."""

MEMORY_GROWTH: Final = 0.10
"""Of all processes together, from after everything was sent once to the end."""

_MORE_DESCRIPTORS: Final = 16  # connections that the server has not seen end yet
_DRIBBLERS: Final = 3


class Watcher:
    """Sends a photograph every second, over both protocols in turn, and compares the answer.

    Args:
        server: the server.
        precision: of the ensemble.
        photograph: the image.

    Attributes:
        seconds: how long each took.
        faults: what was not as promised.
    """

    def __init__(self, server: TritonServer, precision: str, photograph: bytes) -> None:
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self._clients = [
            SegmentationClient(server.grpc_url, "grpc", precision, retry=RetryPolicy(retries=0)),
            SegmentationClient(server.http_url, "http", precision, retry=RetryPolicy(retries=0)),
        ]
        self._photograph = photograph
        self._first = fingerprint(self._clients[0].segment(photograph))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._look(self._clients[len(self.seconds) % 2])

    def _look(self, client: SegmentationClient) -> None:
        started = time.monotonic()
        try:
            if fingerprint(client.segment(self._photograph)) != self._first:
                self.faults.append("an ordinary photograph was answered differently meanwhile")
        except SegmentationError as error:
            self.faults.append(f"an ordinary photograph failed meanwhile: {error}")
        self.seconds.append(time.monotonic() - started)
        if self.seconds[-1] > PROMPT_S:
            self.faults.append(f"an ordinary photograph took {self.seconds[-1]:.1f} s meanwhile")


@contextlib.contextmanager
def dribblers(url: str) -> Iterator[None]:
    """Hold a few connections that send a byte now and then, and never finish."""
    stop = threading.Event()

    def dribble() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                protocol.dribble(url, 5.0)

    threads = [threading.Thread(target=dribble) for _ in range(_DRIBBLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def resources(server: TritonServer) -> dict[str, float]:
    """Resident memory (what is shared is counted once), file descriptors and shared memory of a server's processes."""
    parent = psutil.Process(server.pid)
    processes = [parent, *parent.children(recursive=True)]
    prefix = server.state_folder.name.removesuffix(STATE_NAME)
    regions = [*SHARED_MEMORY.glob(f"{prefix}*"), *server.state_folder.iterdir()]
    return {
        "memory_mb": sum(each.memory_full_info().pss for each in processes) / 1e6,
        "descriptors": float(sum(each.num_fds() for each in processes)),
        "regions": float(len(regions)),
        "shared_memory_mb": sum(region.stat().st_blocks * 512 for region in regions) / 1e6,
    }


def resource_faults(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What is left behind that should not be."""
    faults = []
    for name, what in (("memory_mb", "memory"), ("shared_memory_mb", "shared memory")):
        if after[name] > (1 + MEMORY_GROWTH) * before[name]:
            faults.append(f"{what} grew from {before[name]:.0f} to {after[name]:.0f} MB")
    if after["descriptors"] > before["descriptors"] + _MORE_DESCRIPTORS:
        faults.append(f"file descriptors grew from {before['descriptors']:.0f} to {after['descriptors']:.0f}")
    if after["regions"] > before["regions"]:
        faults.append(f"shared memory regions grew from {before['regions']:.0f} to {after['regions']:.0f}")
    return faults
