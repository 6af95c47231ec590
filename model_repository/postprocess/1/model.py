"""Candidates and prototypes of the network to boxes, scores and encoded masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.postprocess import pack_response, postprocess
from serving.admission import Admission, state_path
from serving.python_backend import answer_each, count_out, request_parameters
from serving.step_metrics import PostprocessMetrics


class TritonPythonModel:
    """Finds the instances of each request's images."""

    def initialize(self, args: dict[str, str]) -> None:
        """Keep OpenCV to one thread: the instances of this model are its threads."""
        self._admission = Admission(state_path(), max_latency_s=0.0)  # this step lets nobody in
        self._metrics = PostprocessMetrics(args["model_name"])
        cv2.setNumThreads(1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and count all of them out."""
        responses = answer_each(requests, self._instances, ask_whether_cancelled=False)
        for request in requests:
            count_out(self._admission, request)
        return responses

    def finalize(self) -> None:
        """Hand over what was counted last."""
        self._metrics.close()

    def _instances(self, request: Any) -> list[Any]:
        parameters = request_parameters(request)
        candidates, prototypes, geometries = (
            pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
            for spec in (contract.CANDIDATES, contract.PROTOTYPES, contract.GEOMETRY)
        )
        images = [
            postprocess(rows, planes, Geometry.from_array(geometry), parameters)
            for rows, planes, geometry in zip(candidates, prototypes, geometries, strict=True)
        ]
        self._metrics.answered(len(image.scores) for image in images)
        return [pb_utils.Tensor(name, array) for name, array in pack_response(images).items()]
