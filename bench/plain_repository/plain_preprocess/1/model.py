"""The plain way: encoded images to FP32 planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from bench.plain import to_planes


class TritonPythonModel:
    """Decodes, letterboxes and scales the images of each request."""

    def initialize(self, args: dict[str, str]) -> None:
        """One OpenCV thread per instance, as in the project's own models."""
        cv2.setNumThreads(1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
    made = [to_planes(data) for data in encoded]
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor("planes", np.stack([planes for planes, _ in made])),
            pb_utils.Tensor("geometry", np.stack([geometry.to_array() for _, geometry in made])),
        ]
    )
