"""What the repository's Python models count into the server's own metrics, beside Triton's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import triton_python_backend_utils as pb_utils

from pipeline.errors import IMAGE_FAULTS

DECODED_METRIC: Final = "segmentation_images_decoded_total"
DECODE_ERRORS_METRIC: Final = "segmentation_decode_errors_total"
REFUSED_METRIC: Final = "segmentation_requests_refused_total"
DETECTIONS_METRIC: Final = "segmentation_detections_per_image"

_BUCKETS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0)


class PreprocessMetrics:
    """Counters of ``preprocess``: images decoded, images refused by reason, requests refused for overload."""

    def __init__(self, model: str) -> None:
        labels = {"model": model}
        # A family lives as long as its Python object, and its metrics with it.
        self._families = (
            _family(DECODED_METRIC, "Images decoded"),
            _family(DECODE_ERRORS_METRIC, "Images refused, by reason"),
            _family(REFUSED_METRIC, "Requests refused because their answer would have come too late"),
        )
        decoded, errors, refused = self._families
        self._decoded = decoded.Metric(labels=labels)
        # All there from the start, so that the first refusal shows as a rise.
        self._errors = {reason: errors.Metric(labels={**labels, "reason": reason}) for reason in IMAGE_FAULTS}
        self._refused = refused.Metric(labels=labels)

    def decoded(self, images: int) -> None:
        """Count the images of one request."""
        self._decoded.increment(images)

    def image_refused(self, reason: str) -> None:
        """Count one image that is at fault; see :data:`pipeline.errors.IMAGE_FAULTS`."""
        self._errors[reason].increment(1)

    def request_refused(self) -> None:
        """Count one request that was refused for overload."""
        self._refused.increment(1)


class PostprocessMetrics:
    """A histogram of the detections per image."""

    def __init__(self, model: str) -> None:
        self._family = _family(DETECTIONS_METRIC, "Detections per image", pb_utils.MetricFamily.HISTOGRAM)
        self._detections = self._family.Metric(labels={"model": model}, buckets=list(_BUCKETS))

    def answered(self, detections: Iterable[int]) -> None:
        """Count the images of one request, given the detections in each."""
        for number in detections:
            self._detections.observe(number)


def _family(name: str, description: str, kind: Any = None) -> Any:
    return pb_utils.MetricFamily(
        name=name, description=description, kind=pb_utils.MetricFamily.COUNTER if kind is None else kind
    )
