"""Admission control: requests that would wait too long are refused at once, before any work is done on them.

Triton queues without bound in front of every step of an ensemble, and a ``max_queue_size`` on a step makes requests
hang on servers before 26.03 (triton-inference-server/core pull request 466). So ``preprocess``, the first step,
decides: it knows how many images are on their way through the ensemble and how long the last ones took, and refuses a
request whose predicted latency is above a bound. ``postprocess``, the last step, reports what is finished. Both find
the state in a file in shared memory, whichever processes they run in.
"""

from __future__ import annotations

import fcntl
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import contract
from pipeline.errors import BUSY, OverloadError
from serving.state import SHARED_MEMORY

SHM_PREFIX_VARIABLE: Final = "TRITON_SEGMENTATION_SHM_PREFIX"
"""Environment variable with the beginning of the names of one server's shared memory files."""

FLOOR_IMAGES: Final = contract.MAX_REQUEST_BATCH
"""So many images are always let in: one full request, or a few callers that wait for each answer."""

_SLOTS: Final = 1024  # requests under way at once
_SAMPLES: Final = 32
_LOST_AFTER: Final = 3.0  # times the predicted latency, and never sooner than the next
_LOST_AFTER_S: Final = 1.0
_UNKNOWN_S: Final = 0.1  # per image under way, as long as nothing has been answered yet

# Words of the state, 64 bits each: a counter of samples, the samples (seconds per image under way), and for each slot
# the moment of admission (nanoseconds of the monotonic clock, 0 is free), the moment from which it counts as lost, and
# the images.
_WORDS: Final = 1 + _SAMPLES + 3 * _SLOTS


class Admission:
    """Who is let into the ensemble, for all processes of one server.

    A request that never reaches the last step (its step failed, its caller went away) counts until it has taken three
    times as long as was predicted, and a second, then no more.

    Attributes:
        max_latency_s: bound on the predicted time from admission to the end of the last step, in seconds.
    """

    def __init__(self, path: Path, max_latency_s: float) -> None:
        """Open the state, or make it.

        Args:
            path: the file; made when it is missing.
            max_latency_s: see the attribute.

        Raises:
            OSError: it cannot be opened.
        """
        self.max_latency_s = max_latency_s
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size < _WORDS * 8:
            os.posix_fallocate(descriptor, 0, _WORDS * 8)  # fails here, not with SIGBUS later, where no room is left
        fcntl.flock(self._file, fcntl.LOCK_UN)
        words: NDArray[np.int64] = np.frombuffer(mmap(descriptor, _WORDS * 8), np.int64)
        self._finished = words[:1]
        self._samples = words[1 : 1 + _SAMPLES].view(np.float64)
        self._admitted, self._lost_from, self._images = words[1 + _SAMPLES :].reshape(3, _SLOTS)

    def admit(self, images: int) -> NDArray[np.int64]:
        """Let a request in.

        Args:
            images: how many it carries, 1 or more.

        Returns:
            int64 [3], to be given to :meth:`finish`: number of the slot, moment of admission, images under way.

        Raises:
            OverloadError: its predicted latency is above the bound; nothing is to be done for it.
        """
        now = time.monotonic_ns()
        with self._locked():
            under_way = self._under_way(now)
            total = int(self._images @ under_way) + images
            predicted_s = total * self._seconds_per_image()
            slot = int(under_way.argmin())  # the first that is free, if one is
            if total > max(FLOOR_IMAGES, images) and (predicted_s > self.max_latency_s or under_way[slot]):
                raise OverloadError(
                    f"{BUSY}: with the {total - images} images under way, this request would take about "
                    f"{predicted_s:.1f} s; allowed: {self.max_latency_s:g} s. Try again later"
                )
            self._admitted[slot], self._images[slot] = now, images
            self._lost_from[slot] = now + int(max(_LOST_AFTER * predicted_s, _LOST_AFTER_S) * 1e9)
        return np.array([slot, now, total], np.int64)

    def finish(self, ticket: NDArray[np.int64], answered: bool = True) -> None:
        """Count a request out.

        Args:
            ticket: int64 [3], as :meth:`admit` gave it; one that is not known any more is passed over.
            answered: whether the time that it took says something about the time that others will take.
        """
        slot, admitted, total = map(int, ticket)
        now = time.monotonic_ns()
        with self._locked():
            if not 0 <= slot < _SLOTS or self._admitted[slot] != admitted or total < 1 or admitted < 1:
                return
            self._admitted[slot] = 0
            if answered:
                self._samples[int(self._finished[0]) % _SAMPLES] = (now - admitted) / 1e9 / total
                self._finished[0] += 1

    @property
    def images_under_way(self) -> int:
        """Images of admitted requests that are not finished."""
        with self._locked():
            return int(self._images[self._under_way(time.monotonic_ns())].sum())

    def _under_way(self, now: int) -> NDArray[np.bool_]:
        return np.asarray((self._admitted > 0) & (self._lost_from > now), np.bool_)

    def _seconds_per_image(self) -> float:
        """Latency by images under way at admission: above the time per image of a full server, and equal to it there.

        (Little's law: latency = images under way / images per second.) The median, so that one stalled request does not
        close the door for all.
        """
        known = [sample for sample in self._samples.tolist() if sample > 0]
        return statistics.median(known) if known else _UNKNOWN_S

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Released by the kernel when a process is killed while it holds it.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def state_path() -> Path:
    """The state of the server that this process of the Python backend belongs to."""
    return Path(f"{shm_path()}admission")


def shm_path() -> Path:
    """Beginning of the paths of that server's files in shared memory."""
    return SHARED_MEMORY / (os.environ.get(SHM_PREFIX_VARIABLE) or _parent())


def _parent() -> str:
    """A name that no other server has had: the parent's number and the moment it was started (proc(5), field 22)."""
    pid = os.getppid()
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"segmentation_{pid}_{started}_"
