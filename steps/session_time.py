"""How much processor time the network itself takes: the part of a host's work that is no overhead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from steps.metrics import counter_family
from steps.publisher import Publisher

CPU_METRIC: Final = "segmentation_session_cpu_seconds_total"
IMAGES_METRIC: Final = "segmentation_session_images_total"


class SessionTime:
    """Counts a session's processor time and images, into the server's metrics.

    The time is that of all threads of the process between the beginning and the end of a run.
    """

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        # A family lives as long as its Python object, and its counters with it.
        self._families = (
            counter_family(CPU_METRIC, "Processor time of the network's session"),
            counter_family(IMAGES_METRIC, "Images that went through the network, padding left out"),
        )
        self._publisher = Publisher()
        self._cpu, self._images = (self._publisher.tally(family.Metric(labels=labels)) for family in self._families)

    @contextmanager
    def measured(self, images: int) -> Iterator[None]:
        """Measure one run of the session over ``images`` images."""
        started = time.process_time()
        yield
        self._cpu.add(time.process_time() - started)
        self._images.add(images)

    def close(self) -> None:
        """Hand over the last counts."""
        self._publisher.close()
