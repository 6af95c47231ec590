"""A backend for Label Studio that suggests annotations: https://github.com/HumanSignal/label-studio-ml-backend.

Example:
    >>> from label_studio_ml.api import init_app  # doctest: +SKIP
    >>> from client.label_studio import SegmentationBackend
    >>> init_app(SegmentationBackend).run(port=9090)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.errors import RequestError
from client.segmentation import SegmentationClient
from pipeline.optional import optional
from pipeline.result import Detection, Segmentation

if TYPE_CHECKING:
    _Base: Any = object
else:
    _Base = optional("label_studio_ml.model", "label-studio-ml redis rq").LabelStudioMLBase

URL_VARIABLE: Final = "SEGMENTATION_URL"
PRECISION_VARIABLE: Final = "SEGMENTATION_PRECISION"
_TAGS: Final = ("BrushLabels", "PolygonLabels", "RectangleLabels")


class SegmentationBackend(_Base):
    """Suggests brush masks, polygons or boxes, as the project's labels say: the first such tag of an image is filled.

    The environment says which server is called: ``SEGMENTATION_URL`` (``host:port`` of gRPC) and
    ``SEGMENTATION_PRECISION``. Labels are matched with the model's class names, whatever their case; classes without a
    label are left out.
    """

    def predict(self, tasks: Sequence[Mapping[str, Any]], *_: Any, **__: Any) -> list[dict[str, Any]]:
        """Suggestions for tasks, in order.

        Raises:
            SegmentationError: the server does not answer, or refuses a picture.
            ValueError: the project has no labels that can be filled.
        """
        control, image, key, kind, labels = self._tag()
        by_name = {label.lower(): label for label in labels}
        url = os.environ.get(URL_VARIABLE)
        with SegmentationClient(url, precision=os.environ.get(PRECISION_VARIABLE, "int8")) as client:
            found = []
            for task in tasks:
                result = client.segment(Path(self.get_local_path(task["data"][key])))
                shapes: list[dict[str, Any]] = [
                    {
                        "from_name": control,
                        "to_name": image,
                        "type": kind.lower(),
                        "score": one.score,
                        "original_width": result.image_size[1],
                        "original_height": result.image_size[0],
                        "image_rotation": 0,
                        "value": {**value, kind.lower(): [by_name[one.class_name.lower()]]},
                    }
                    for index, one in enumerate(result)
                    if one.class_name.lower() in by_name
                    for value in _values(kind, result, index, one)
                ]
                found.append(
                    {
                        "result": shapes,
                        "score": float(np.mean([shape["score"] for shape in shapes])) if shapes else 0.0,
                        "model_version": client.model,
                    }
                )
        return found

    def _tag(self) -> tuple[str, str, str, str, list[str]]:
        """Names of the first tag that can be filled and of its image, the task's key, the tag's kind and labels."""
        for name, tag in self.parsed_label_config.items():
            if tag["type"] in _TAGS and tag["inputs"][0]["type"] == "Image":
                return name, tag["to_name"][0], tag["inputs"][0]["value"], tag["type"], list(tag["labels"])
        raise RequestError(f"the project has no labels for an image; allowed: {', '.join(_TAGS)}")


def _values(kind: str, result: Segmentation, index: int, one: Detection) -> list[dict[str, Any]]:
    """What Label Studio stores of a shape, in percent of the picture's size."""
    height, width = result.image_size
    if kind == "RectangleLabels":
        x1, y1, x2, y2 = (float(value) for value in one.box)
        return [
            {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
            }
        ]
    if kind == "PolygonLabels":
        percent = 100 / np.array([width, height])
        (polygons,) = _one(result, index).to_polygons()
        return [{"points": (polygon * percent).tolist(), "closed": True} for polygon in polygons]
    brush = optional("label_studio_sdk.converter.brush", "label-studio-sdk")
    return [{"format": "rle", "rle": brush.mask2rle(one.mask().astype(np.uint8) * 255)}]


def _one(result: Segmentation, index: int) -> Segmentation:
    part = slice(index, index + 1)
    return Segmentation(
        result.boxes[part],
        result.scores[part],
        result.class_ids[part],
        result.encoded_masks[part],
        result.mask_format,
        result.image_size,
        result.class_names,
    )
