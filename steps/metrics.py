"""What the repository's Python models count into the server's own metrics, beside Triton's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import triton_python_backend_utils as pb_utils

from pipeline.errors import IMAGE_FAULTS
from steps.publisher import Publisher

DECODED_METRIC: Final = "segmentation_images_decoded_total"
DECODE_ERRORS_METRIC: Final = "segmentation_decode_errors_total"
REFUSED_METRIC: Final = "segmentation_requests_refused_total"
CUT_METRIC: Final = "segmentation_images_cut_total"
DETECTIONS_METRIC: Final = "segmentation_detections_per_image"

_REFUSED_HELP: Final = "Requests refused because their answer would have come too late"
_BUCKETS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 300)


class AdmissionMetrics:
    """The counter of ``admission``: requests refused for overload."""

    def __init__(self, model: str) -> None:
        # A family lives as long as its Python object, and its metrics with it.
        self._family = counter_family(REFUSED_METRIC, _REFUSED_HELP)
        self._publisher = Publisher()
        self._refused = self._publisher.tally(self._family.Metric(labels={"model": model}))

    def request_refused(self) -> None:
        """Count one request that was refused for overload."""
        self._refused.add()

    def close(self) -> None:
        """Hand over the last counts."""
        self._publisher.close()


class PreprocessMetrics:
    """Counters of ``preprocess``: images decoded, images refused by reason, requests refused for overload."""

    def __init__(self, model: str) -> None:
        labels = {"model": model}
        self._families = (
            counter_family(DECODED_METRIC, "Images decoded"),
            counter_family(DECODE_ERRORS_METRIC, "Images refused, by reason"),
            counter_family(REFUSED_METRIC, _REFUSED_HELP),
        )
        decoded, errors, refused = self._families
        self._publisher = Publisher()
        self._decoded = self._publisher.tally(decoded.Metric(labels=labels))
        self._refused = self._publisher.tally(refused.Metric(labels=labels))
        # All there from the start, so that the first refusal shows as a rise.
        self._errors = {
            reason: self._publisher.tally(errors.Metric(labels={**labels, "reason": reason})) for reason in IMAGE_FAULTS
        }

    def decoded(self, images: int) -> None:
        """Count the images of one request."""
        self._decoded.add(images)

    def image_refused(self, reason: str) -> None:
        """Count one image that is at fault; see :data:`pipeline.errors.IMAGE_FAULTS`."""
        self._errors[reason].add()

    def request_refused(self) -> None:
        """Count one request whose images would have come too late."""
        self._refused.add()

    def close(self) -> None:
        """Hand over the last counts."""
        self._publisher.close()


class PostprocessMetrics:
    """A histogram of the detections per image, and counters of requests refused and of images cut.

    Written as the series that a histogram consists of (``_bucket`` with the label ``le``, ``_sum``, ``_count``), which
    can be raised by more than one observation at a time.
    """

    def __init__(self, model: str) -> None:
        labels = {"model": model}
        self._families = tuple(
            counter_family(f"{DETECTIONS_METRIC}{part}", f"Detections per image: {what}")
            for part, what in (
                ("_bucket", "images with at most so many"),
                ("_sum", "detections"),
                ("_count", "images"),
            )
        )
        bucket, total, count = self._families
        self._publisher = Publisher()
        # From the widest bucket down, in which order they are handed over: no bucket ever holds more than a wider one.
        bounds = [(float("inf"), "+Inf"), *((float(bound), str(bound)) for bound in reversed(_BUCKETS))]
        self._buckets = [
            (bound, self._publisher.tally(bucket.Metric(labels={**labels, "le": text}))) for bound, text in bounds
        ]
        self._more = (
            counter_family(REFUSED_METRIC, _REFUSED_HELP),
            counter_family(CUT_METRIC, "Images with more candidates above the threshold than leave the network"),
        )
        refused, cut = self._more
        self._refused = self._publisher.tally(refused.Metric(labels=labels))
        self._cut = self._publisher.tally(cut.Metric(labels=labels))
        self._sum = self._publisher.tally(total.Metric(labels=labels))
        self._count = self._publisher.tally(count.Metric(labels=labels))

    def answered(self, detections: Iterable[int]) -> None:
        """Count the images of one request, given the detections in each."""
        for number in detections:
            for bound, bucket in self._buckets:
                if number <= bound:
                    bucket.add()
            self._sum.add(number)
            self._count.add()

    def request_refused(self) -> None:
        """Count one request whose masks would have come too late."""
        self._refused.add()

    def candidates_cut(self, images: int) -> None:
        """Count images in which even the last candidate lay above the threshold."""
        self._cut.add(images)

    def close(self) -> None:
        """Hand over the last counts."""
        self._publisher.close()


def counter_family(name: str, description: str) -> Any:
    """A family of counters in the server's metrics."""
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
