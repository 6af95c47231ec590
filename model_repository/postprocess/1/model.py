"""Candidates and prototypes of the network to boxes, scores and encoded masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from pipeline import contract
from pipeline.decode import decode_candidates, may_be_cut
from pipeline.letterbox import Geometry
from pipeline.mask_work import check_mask_work
from pipeline.masks import mask_boxes
from pipeline.postprocess import pack_response, segmentation_of
from steps.admission import Admission, state_path
from steps.checks import CutCandidates, check_in_time
from steps.metrics import PostprocessMetrics
from steps.python_backend import (
    DEVICES,
    answer_each,
    config_choice,
    mark_finished,
    request_limits,
    request_parameters,
)


class TritonPythonModel:
    """Finds the instances of each request's images.

    Where the model's configuration says so (``device``), :class:`steps.gpu.ensemble.PostprocessStep` does it.
    """

    _on_gpu: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Keep OpenCV to one thread: the instances of this model are its threads."""
        config = json.loads(args["model_config"])
        if config_choice(config, "device", DEVICES) == "gpu":
            from steps.gpu.ensemble import PostprocessStep

            self._on_gpu = PostprocessStep(args)
            return
        self._admission = Admission(state_path(), max_latency_s=0.0)  # this step admits nothing
        self._limits = request_limits(config)
        self._metrics = PostprocessMetrics(args["model_name"])
        self._cut = CutCandidates(self._metrics)
        cv2.setNumThreads(1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and mark all of them finished."""
        if self._on_gpu is not None:
            return list(self._on_gpu.execute(requests))
        responses = answer_each(requests, self._instances, ask_whether_cancelled=False)
        for request in requests:
            mark_finished(self._admission, request)
        return responses

    def finalize(self) -> None:
        """Hand over the last counts."""
        (self._on_gpu or self._metrics).close()

    def _instances(self, request: Any) -> list[Any]:
        parameters = self._limits.applied(request_parameters(request))
        candidates, prototypes, geometries = (
            pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
            for spec in (contract.CANDIDATES, contract.PROTOTYPES, contract.GEOMETRY)
        )
        places = [Geometry.from_array(geometry) for geometry in geometries]
        found = [decode_candidates(rows, where, parameters) for rows, where in zip(candidates, places, strict=True)]
        boxes = [
            mask_boxes(planes, one.coefficients, one.boxes, where)
            for one, planes, where in zip(found, prototypes, places, strict=True)
        ]
        seconds = check_mask_work(boxes, places, parameters, self._admission.allowed_s)
        check_in_time(request, seconds, self._admission, self._metrics)
        images = [
            segmentation_of(one, planes, where, parameters)
            for one, planes, where in zip(found, prototypes, places, strict=True)
        ]
        cut = sum(may_be_cut(rows, parameters) for rows in candidates)
        self._cut.report(cut, candidates.shape[1], parameters.confidence)
        self._metrics.answered(len(image.scores) for image in images)
        return [pb_utils.Tensor(name, array) for name, array in pack_response(images).items()]
