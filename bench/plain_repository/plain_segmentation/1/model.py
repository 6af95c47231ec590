"""The plain way: the export, run by ONNX Runtime with its defaults on the images of all requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from steps.metrics import SessionTime


class TritonPythonModel:
    """Runs the network."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the session."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._session_time = SessionTime(args["model_name"], args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run one batch."""
        parts = [pb_utils.get_input_tensor_by_name(request, "planes").as_numpy() for request in requests]
        images = np.concatenate(parts)
        with self._session_time.measured(len(images)):
            detections, prototypes = self._session.run(None, {self._input: images})
        responses = []
        start = 0
        for part in parts:
            end = start + len(part)
            tensors = [
                pb_utils.Tensor("detections", np.ascontiguousarray(detections[start:end])),
                pb_utils.Tensor("prototypes", np.ascontiguousarray(prototypes[start:end])),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = end
        return responses

    def finalize(self) -> None:
        """Hand over what was counted last."""
        self._session_time.close()
