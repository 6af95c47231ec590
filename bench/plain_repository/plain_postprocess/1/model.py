"""The plain way: whole outputs of the network to boxes, scores and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from bench.plain import finish
from pipeline.letterbox import Geometry
from pipeline.postprocess import pack_response


class TritonPythonModel:
    """Segments the images of each request."""

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
    tensors = pack_response(results)
    outputs = [pb_utils.Tensor(name, tensors[name]) for name in ("boxes", "scores", "class_ids", "masks")]
    return pb_utils.InferenceResponse(output_tensors=outputs)
