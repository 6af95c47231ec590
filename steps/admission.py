"""Admission control: requests that would wait too long are rejected at once, before any work is done on them.

Triton queues without bound in front of every step of an ensemble, and a ``max_queue_size`` on a step makes requests
hang on servers before 26.03 (triton-inference-server/core pull request 466). So ``admission``, the first step, decides:
it knows how many images are on their way through the ensemble and how long the last ones took, and rejects a request
whose predicted latency is above a bound. It does nothing else, so that hardly anything waits in front of it, where it
would not be counted. ``postprocess``, the last step, reports what is finished, and ``preprocess`` what ends there. They
share the state through a file in shared memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
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

from base.files import open_private, private_folder
from base.names import SHARED_MEMORY, SHM_PREFIX_VARIABLE, STATE_NAME
from pipeline import contract
from pipeline.errors import BUSY, OverloadError

FLOOR_IMAGES: Final = contract.MAX_REQUEST_BATCH
"""This many images are always admitted: one full request, or a few callers that wait for each answer."""

MOST_OF_BOUND: Final = 0.75
"""Share of the bound that decoding, or the masks, of one request may take: others wait for it meanwhile."""

_SLOTS: Final = 1024  # requests under way at once
_SAMPLES: Final = 32
_LATE: Final = 1.5  # times the predicted latency: later than that is late, but for the first second
_LATE_S: Final = 1.0
_GIVEN_UP: Final = 10.0  # times the predicted latency, but for the first half minute
_GIVEN_UP_S: Final = 30.0
_PROBE_AFTER_S: Final = 1.0  # without an answer, and never sooner than a full request takes
_ORDINARY_S: Final = 0.05
_ALWAYS_ALLOWED_S: Final = 0.5  # whatever the bound: a full request of ordinary images
_UNKNOWN_S: Final = 0.1  # per image under way, as long as nothing has been answered yet

# Words of the state, 64 bits each; moments are nanoseconds of the monotonic clock: a counter of samples, the moment at
# which the last request was admitted, the moment of the last answer, the moment at which the latest of those that were
# answered had been admitted, the bound on the latency in nanoseconds (0 until the first step has set it), the samples
# (seconds per image under way), and for each slot the moment of admission (0 is free), the predicted latency, and the
# images.
_HEAD: Final = 5
_ANSWERS, _LAST_ADMITTED, _LAST_ANSWER, _LATEST_ANSWERED, _BOUND = range(_HEAD)
_WORDS: Final = _HEAD + _SAMPLES + 3 * _SLOTS


class Admission:
    """Admits requests to the ensemble, or rejects them, for all processes of one server.

    A request that never reaches the last step (its step failed, its caller left) keeps its slot until it is overdue and
    a request admitted at least a second later has finished. Being overdue is not enough: on a slow server every request
    is, and admitting more would slow all of them further. When every slot belongs to a lost request, one request at a
    time is admitted as a probe.

    Attributes:
        max_latency_s: bound on the predicted time from admission to the end of the last step, in seconds.
    """

    def __init__(self, path: Path, max_latency_s: float) -> None:
        """Open the state, or make it.

        Args:
            path: the file, in a folder that only this user can enter; made when it is missing.
            max_latency_s: see the attribute.

        Raises:
            OSError: it cannot be opened, or is another user's.
        """
        self.max_latency_s = max_latency_s
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size < _WORDS * 8:
            os.posix_fallocate(descriptor, 0, _WORDS * 8)  # fails here, not with SIGBUS later, where no room is left
        fcntl.flock(self._file, fcntl.LOCK_UN)
        words: NDArray[np.int64] = np.frombuffer(mmap(descriptor, _WORDS * 8), np.int64)
        self._head, slots = words[:_HEAD], words[_HEAD + _SAMPLES :]
        self._samples = words[_HEAD : _HEAD + _SAMPLES].view(np.float64)
        self._admitted, self._predicted, self._images = slots.reshape(3, _SLOTS)
        if max_latency_s > 0:
            self._head[_BOUND] = int(max_latency_s * 1e9)

    def admit(self, images: int) -> NDArray[np.int64]:
        """Admit a request, or reject it.

        Args:
            images: how many it carries, 1 or more.

        Returns:
            int64 [3], to be given to :meth:`finish`: number of the slot, moment of admission, images under way.

        Raises:
            OverloadError: its predicted latency is above the bound.
        """
        now = time.monotonic_ns()
        with self._locked():
            under_way = self._under_way(now)
            total = int(self._images @ under_way) + images
            seconds_per_image = self._seconds_per_image()
            predicted_s = total * seconds_per_image
            slot = int(under_way.argmin())  # the first that is free, if one is
            late = predicted_s > self.max_latency_s and not self._is_silent(now, seconds_per_image)
            if total > max(FLOOR_IMAGES, images) and (late or under_way[slot]):
                raise OverloadError(
                    f"{BUSY}: with the {total - images} images under way, this request would take about "
                    f"{predicted_s:.1f} s; allowed: {self.max_latency_s:g} s. Try again later"
                )
            self._admitted[slot], self._predicted[slot], self._images[slot] = now, int(predicted_s * 1e9), images
            self._head[_LAST_ADMITTED] = now
        return np.array([slot, now, total], np.int64)

    def finish(self, ticket: NDArray[np.int64], answered: bool = True) -> None:
        """Mark a request finished.

        Args:
            ticket: int64 [3], from :meth:`admit`; one that is no longer known is ignored.
            answered: whether the time that it took predicts the time that others will take.
        """
        slot, admitted, total = map(int, ticket)
        now = time.monotonic_ns()
        with self._locked():
            if not 0 <= slot < _SLOTS or self._admitted[slot] != admitted or total < 1 or admitted < 1:
                return
            self._admitted[slot] = 0
            if answered:
                self._samples[int(self._head[_ANSWERS]) % _SAMPLES] = (now - admitted) / 1e9 / total
                self._head[_ANSWERS] += 1
                self._head[_LAST_ANSWER] = now
                self._head[_LATEST_ANSWERED] = max(self._head[_LATEST_ANSWERED], admitted)

    @property
    def bound_s(self) -> float:
        """The first step's bound, in seconds; infinite where there is no such step."""
        return float(self._head[_BOUND]) / 1e9 or math.inf

    @property
    def allowed_s(self) -> float:
        """Most seconds that decoding, or the masks, of one request may take; infinite where there is no bound."""
        return max(MOST_OF_BOUND * self.bound_s, _ALWAYS_ALLOWED_S)

    def check_in_time(self, ticket: NDArray[np.int64] | None, seconds: float) -> None:
        """Reject long work for a request that can no longer be answered within the bound.

        So requests behind it wait no longer than the bound for those admitted before them. Work that takes no longer
        than an ordinary image is never rejected.

        Args:
            ticket: int64 [3], from :meth:`admit`; None where the step is called by itself.
            seconds: that the work takes.

        Raises:
            OverloadError: it has waited too long.
        """
        if ticket is None or seconds <= _ORDINARY_S:
            return
        waited_s = max(0, time.monotonic_ns() - int(ticket[1])) / 1e9
        if waited_s + seconds > self.bound_s:
            raise OverloadError(
                f"{BUSY}: after {waited_s:.1f} s, this request would take about {seconds:.1f} s more; "
                f"allowed: {self.bound_s:g} s in all. Try again later"
            )

    @property
    def images_under_way(self) -> int:
        """Images of admitted requests that are not finished."""
        with self._locked():
            return int(self._images[self._under_way(time.monotonic_ns())].sum())

    def _under_way(self, now: int) -> NDArray[np.bool_]:
        age = now - self._admitted
        late = age > np.maximum(self._predicted * _LATE, _LATE_S * 1e9)
        overtaken = self._head[_LATEST_ANSWERED] > self._admitted + int(_LATE_S * 1e9)
        given_up = age > np.maximum(self._predicted * _GIVEN_UP, _GIVEN_UP_S * 1e9)
        return np.asarray((self._admitted > 0) & ~(late & overtaken) & ~given_up, np.bool_)

    def _is_silent(self, now: int, seconds_per_image: float) -> bool:
        """Whether nothing was answered or admitted for so long that what is under way may be lost."""
        last = max(self._head[_LAST_ADMITTED], self._head[_LAST_ANSWER])
        return bool(now - last > max(_PROBE_AFTER_S, FLOOR_IMAGES * seconds_per_image) * 1e9)

    def _seconds_per_image(self) -> float:
        """Latency by images under way at admission: above the time per image of a full server, and equal to it there.

        (Little's law: latency = images under way / images per second.) The median, so that one stalled request does not
        shut out all others.
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
    return state_folder() / "admission"


def state_folder() -> Path:
    """That server's folder in shared memory, which only its user can enter.

    ``serving run`` makes it before tritonserver starts, while nobody knows its name. Where tritonserver was started by
    hand, the first process that asks makes it.

    Raises:
        OSError: it cannot be made, or another user made it.
    """
    return private_folder(SHARED_MEMORY / f"{os.environ.get(SHM_PREFIX_VARIABLE) or _of_parent()}{STATE_NAME}")


def _of_parent() -> str:
    """A name for the server that no other user can predict: a hash of what only its own user sees of it.

    That is its process number and start time with the random addresses of its code and stack (proc(5), ``stat``, fields
    22 and 26 to 28).
    """
    pid = os.getppid()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    facts = " ".join([str(pid), fields[19], *fields[23:26]])
    return f"segmentation_{hashlib.sha256(facts.encode()).hexdigest()[:8]}_"
