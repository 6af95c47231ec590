"""What the steps check of a request's work before they begin it, and report of candidates that were cut off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from pipeline.decode_work import check_decode_work
from pipeline.errors import ImageError, OverloadError
from pipeline.images import ImageLimits
from steps.admission import Admission
from steps.metrics import AdmissionMetrics, PostprocessMetrics, PreprocessMetrics
from steps.python_backend import log, ticket_of

_LONG_S: Final = 0.5  # shorter decoding is done even if the request has waited long
_CUT: Final = (
    "in {} image(s) of a request, all {} candidates that leave the network are above confidence {}: instances with "
    "lower scores may be missing. Request a higher confidence, or build the network with a larger top_k"
)
_PAUSE_S: Final = 10.0


def check_decoding(
    request: Any, encoded: Sequence[bytes], limits: ImageLimits, admission: Admission, metrics: PreprocessMetrics
) -> None:
    """Reject long decoding that comes too late, and an image made to keep a decoder busy; counts what is rejected.

    The first step has checked what several images may take.

    Args:
        request: as Triton gave it.
        encoded: those of its images that the processor decodes.
        limits: on every image.
        admission: of the server.
        metrics: of the step.

    Raises:
        ImageError: one image is too much to decode.
        OverloadError: they come too late for what they take.
    """
    allowed_s = admission.allowed_s
    try:
        seconds = check_decode_work(encoded, allowed_s, limits)
    except ImageError as error:
        metrics.image_refused(error.reason)
        raise
    if seconds >= _LONG_S:  # a single image may take longer than is allowed, if it comes in time
        check_in_time(request, min(seconds, allowed_s), admission, metrics)


def check_in_time(request: Any, seconds: float, admission: Admission, metrics: AdmissionMetrics) -> None:
    """Reject work of so many seconds that comes too late (:meth:`steps.admission.Admission.check_in_time`); count it.

    Raises:
        OverloadError: the request has waited too long.
    """
    try:
        admission.check_in_time(ticket_of(request), seconds)
    except OverloadError:
        metrics.request_refused()
        raise


class CutCandidates:
    """Reports images with more candidates above the threshold than leave the network.

    Args:
        metrics: that count them.
    """

    def __init__(self, metrics: PostprocessMetrics) -> None:
        self._metrics = metrics
        self._silent_until = 0.0

    def report(self, images: int, rows: int, confidence: float) -> None:
        """Count so many images of one request, and write to the server's log, at most every ten seconds.

        Args:
            images: 0 or more.
            rows: candidates that leave the network per image.
            confidence: that was asked for.
        """
        if not images:
            return
        self._metrics.candidates_cut(images)
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _PAUSE_S
            log("warn", _CUT.format(images, rows, confidence))
