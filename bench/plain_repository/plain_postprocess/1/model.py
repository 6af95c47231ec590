"""The plain way: whole outputs of the network to boxes, scores and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from bench.baseline.plain import PlainResult, finish
from pipeline.letterbox import Geometry


class TritonPythonModel:
    """Finds the instances of each request's images."""

    def initialize(self, args: dict[str, str]) -> None:
        """One OpenCV thread per instance, as in the project's own models."""
        cv2.setNumThreads(1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    detections, prototypes, geometries = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("detections", "prototypes", "geometry")
    )
    results = [
        finish(rows, planes, Geometry.from_array(geometry))
        for rows, planes, geometry in zip(detections, prototypes, geometries, strict=True)
    ]
    return pb_utils.InferenceResponse(output_tensors=_packed(results))


def _packed(results: Sequence[PlainResult]) -> list[Any]:
    depth = max(1, *(len(result.scores) for result in results))
    boxes = np.zeros((len(results), depth, 4), np.float32)
    scores = np.zeros((len(results), depth), np.float32)
    class_ids = np.zeros((len(results), depth), np.int32)
    masks = np.full((len(results), depth), b"", dtype=object)
    for index, result in enumerate(results):
        count = len(result.scores)
        boxes[index, :count] = result.boxes
        scores[index, :count] = result.scores
        class_ids[index, :count] = result.class_ids
        masks[index, :count] = result.masks
    arrays = {"boxes": boxes, "scores": scores, "class_ids": class_ids, "masks": masks}
    return [pb_utils.Tensor(name, array) for name, array in arrays.items()]
