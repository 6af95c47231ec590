"""Objects followed through the frames of a video, by ByteTrack of the package ``trackers``.

https://github.com/roboflow/trackers; ByteTrack: Zhang et al., 2022.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.optional import optional
from pipeline.result import Segmentation


class Tracker:
    """Gives the same object the same number in every frame.

    Args:
        frame_rate: of the video, in frames per second.
        options: keyword arguments of ``trackers.ByteTrackTracker``.

    Raises:
        ImportError: ``trackers`` is missing; says what to install.

    Example:
        >>> tracker = Tracker()  # doctest: +SKIP
        >>> for frame in frames:
        ...     result = tracker.update(client.segment(frame))
        ...     print([(found.track_id, found.class_name) for found in result])
    """

    def __init__(self, frame_rate: float = 30.0, **options: Any) -> None:
        self._supervision = optional("supervision", "supervision trackers")
        self._tracker = optional("trackers", "trackers").ByteTrackTracker(frame_rate=frame_rate, **options)

    def update(self, result: Segmentation) -> Segmentation:
        """The result of the next frame, with ``track_ids``; frames come in order.

        An object has none (None) until it has been seen in some frames in a row.
        """
        detections = self._supervision.Detections(
            xyxy=result.boxes.astype(np.float32),
            confidence=result.scores.astype(np.float32),
            class_id=result.class_ids.astype(int),
            data={"index": np.arange(len(result))},
        )
        ids: list[int | None] = [None] * len(result)
        followed = self._tracker.update(detections)
        for index, number in zip(followed.data.get("index", ()), followed.tracker_id, strict=True):
            if number is not None and number >= 0:
                ids[int(index)] = int(number)
        return replace(result, track_ids=tuple(ids))
