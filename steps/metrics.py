"""What the repository's Python models add to the server's own metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import triton_python_backend_utils as pb_utils

from pipeline.errors import IMAGE_FAULTS
from steps.publisher import Publisher, Tally

DECODED_METRIC: Final = "segmentation_images_decoded_total"
DECODE_ERRORS_METRIC: Final = "segmentation_decode_errors_total"
REFUSED_METRIC: Final = "segmentation_requests_refused_total"
CUT_METRIC: Final = "segmentation_images_cut_total"
DETECTIONS_METRIC: Final = "segmentation_detections_per_image"
CPU_METRIC: Final = "segmentation_session_cpu_seconds_total"
IMAGES_METRIC: Final = "segmentation_session_images_total"

_BUCKETS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 300)


class _Metrics:
    """Counters of one model, handed to the server once a second.

    Args:
        labels: of all of them.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._families: dict[str, Any] = {}  # a family lives as long as its Python object, and its metrics with it
        self._publisher = Publisher()

    def _counter(self, name: str, description: str, **labels: str) -> Tally:
        if name not in self._families:
            kind = pb_utils.MetricFamily.COUNTER
            self._families[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        return self._publisher.tally(self._families[name].Metric(labels={**self._labels, **labels}))

    def close(self) -> None:
        """Hand over the last counts."""
        self._publisher.close()


class AdmissionMetrics(_Metrics):
    """The counter of ``admission``, which the other steps have too: requests rejected for overload."""

    def __init__(self, model: str) -> None:
        super().__init__(model=model)
        self._refused = self._counter(REFUSED_METRIC, "Requests refused because their answer would have come too late")

    def request_refused(self) -> None:
        """Count one request whose answer would have come too late."""
        self._refused.add()


class PreprocessMetrics(AdmissionMetrics):
    """Counters of ``preprocess``: also images decoded, and images rejected by reason."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._decoded = self._counter(DECODED_METRIC, "Images decoded")
        # All exist from the start, so that the first refusal shows as a rise.
        self._errors = {
            reason: self._counter(DECODE_ERRORS_METRIC, "Images refused, by reason", reason=reason)
            for reason in IMAGE_FAULTS
        }

    def decoded(self, images: int) -> None:
        """Count the images of one request."""
        self._decoded.add(images)

    def image_refused(self, reason: str) -> None:
        """Count one image that is at fault; see :data:`pipeline.errors.IMAGE_FAULTS`."""
        self._errors[reason].add()


class PostprocessMetrics(AdmissionMetrics):
    """Counters of ``postprocess``: also a histogram of the detections per image, and images with candidates cut.

    The histogram is written as the series that it consists of (``_bucket`` with the label ``le``, ``_sum``,
    ``_count``), which can be raised by more than one observation at a time.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        # Handed over from the widest bucket down, so that no bucket ever holds more than a wider one.
        self._buckets = [
            (bound, self._counter(f"{DETECTIONS_METRIC}_bucket", "Detections per image: images up to le", le=text))
            for bound, text in [(float("inf"), "+Inf"), *((bound, str(bound)) for bound in reversed(_BUCKETS))]
        ]
        self._sum = self._counter(f"{DETECTIONS_METRIC}_sum", "Detections per image: detections")
        self._count = self._counter(f"{DETECTIONS_METRIC}_count", "Detections per image: images")
        self._cut = self._counter(CUT_METRIC, "Images with more candidates above the threshold than leave the network")

    def answered(self, detections: Iterable[int]) -> None:
        """Count the images of one request, given the detections in each."""
        for number in detections:
            for bound, bucket in self._buckets:
                if number <= bound:
                    bucket.add()
            self._sum.add(number)
            self._count.add()

    def candidates_cut(self, images: int) -> None:
        """Count images in which even the last candidate lay above the threshold."""
        self._cut.add(images)


class SessionTime(_Metrics):
    """A network session's processor time, of all threads of the process during a run, and its images."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__(model=model, version=version)
        self._cpu = self._counter(CPU_METRIC, "Processor time of the network's session")
        self._images = self._counter(IMAGES_METRIC, "Images that went through the network, without padding")

    @contextmanager
    def measured(self, images: int) -> Iterator[None]:
        """Measure one run of the session over ``images`` images."""
        started = time.process_time()
        yield
        self._cpu.add(time.process_time() - started)
        self._images.add(images)
