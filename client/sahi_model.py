"""A model for SAHI, so that large pictures go through the server in tiles: https://github.com/obss/sahi."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.errors import RequestError
from client.segmentation import SegmentationClient
from pipeline.optional import optional
from pipeline.result import Segmentation

if TYPE_CHECKING:
    _DetectionModel: Any = object
else:
    _DetectionModel = optional("sahi.models.base", "sahi").DetectionModel


class SahiModel(_DetectionModel):
    """The server as a ``sahi.models.base.DetectionModel``. Tiles of one batch go in one request, up to eight.

    Args:
        client: that is called.
        confidence_threshold: least score of a detection, in [0, 1].
        options: other arguments of SAHI's class, such as ``category_remapping``.

    Example:
        >>> from sahi.predict import get_sliced_prediction  # doctest: +SKIP
        >>> model = SahiModel(SegmentationClient(), confidence_threshold=0.3)
        >>> get_sliced_prediction("large.jpg", model, slice_height=640, slice_width=640, batch_size=8)
    """

    def __init__(self, client: SegmentationClient, confidence_threshold: float = 0.3, **options: Any) -> None:
        super().__init__(model=client, confidence_threshold=confidence_threshold, **options)

    def set_device(self, device: str | None = None) -> None:
        """Do nothing: the server has its own device."""
        self.device = device or "server"

    def set_model(self, model: SegmentationClient, **kwargs: Any) -> None:
        """Take a client, and the names of its model's classes."""
        del kwargs
        self.model: SegmentationClient | None = model
        self.category_mapping = {str(index): name for index, name in enumerate(model.class_names())}

    def unload_model(self) -> None:
        """Forget the client; it stays open."""
        self.model = None

    @property
    def num_categories(self) -> int:
        """How many classes the model has."""
        return len(self.category_mapping)

    @property
    def has_mask(self) -> bool:
        """Whether detections have masks: always."""
        return True

    @property
    def category_names(self) -> list[str]:
        """Names of the classes."""
        return list(self.category_mapping.values())

    def perform_inference(self, image: NDArray[np.uint8]) -> None:
        """Segment one tile, uint8 [height, width, 3] RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Segment several tiles."""
        if self.model is None:
            raise RequestError("this model has no client; give one with set_model")
        self._original_predictions = self.model.segment_batch(
            [np.ascontiguousarray(image) for image in images],
            confidence=self.confidence_threshold,
            mask_format="polygon",
        )

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        compatibility = optional("sahi.utils.compatibility", "sahi")
        shifts = compatibility.fix_shift_amount_list(shift_amount_list or [[0, 0]])
        shapes = compatibility.fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            _predictions(result, shifts[index], shapes[index] if shapes else list(result.image_size))
            for index, result in enumerate(self._original_predictions)
        ]


def _predictions(result: Segmentation, shift: list[int], full_shape: list[int]) -> list[Any]:
    prediction = optional("sahi.prediction", "sahi").ObjectPrediction
    found = []
    for one in result:
        polygons = json.loads(one.encoded_mask)
        if polygons:  # a mask of no pixel is no object to SAHI
            found.append(
                prediction(
                    bbox=[float(value) for value in one.box],
                    category_id=one.class_id,
                    category_name=one.class_name,
                    segmentation=polygons,
                    score=one.score,
                    shift_amount=shift,
                    full_shape=full_shape,
                )
            )
    return found
