"""Encoded images to letterboxed pixels and their geometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline import contract
from pipeline.errors import ImageError
from pipeline.images import ImageLimits
from pipeline.letterbox import RESAMPLING
from pipeline.preprocess import preprocess
from steps.admission import Admission, state_path
from steps.checks import check_decoding
from steps.metrics import PreprocessMetrics
from steps.python_backend import DEVICES, answer_each, config_choice, config_parameter, fills_input, mark_finished


class TritonPythonModel:
    """Decodes and letterboxes the images of each request; a bad image fails only its own request.

    Where the model's configuration says so (``device``), :class:`steps.gpu.ensemble.PreprocessStep` does it.
    """

    _on_gpu: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Read the input size and the limits out of the model's configuration."""
        config = json.loads(args["model_config"])
        if config_choice(config, "device", DEVICES) == "gpu":
            from steps.gpu.ensemble import PreprocessStep

            self._on_gpu = PreprocessStep(args)
            return
        dims = next(output["dims"] for output in config["output"] if output["name"] == contract.IMAGES.name)
        self._input_shape = tuple(int(dim) for dim in dims)
        self._limits = ImageLimits(
            max_pixels=config_parameter(config, "max_image_pixels", ImageLimits.max_pixels),
            max_bytes=config_parameter(config, "max_image_bytes", ImageLimits.max_bytes),
        )
        self._stretch = fills_input(config)
        self._bilinear = config_choice(config, "resample", RESAMPLING) == "bilinear"
        self._admission = Admission(state_path(), max_latency_s=0.0)  # this step admits nothing
        self._metrics = PreprocessMetrics(args["model_name"])
        cv2.setNumThreads(1)  # the instances of this model are its threads

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and mark those that end here finished."""
        if self._on_gpu is not None:
            return list(self._on_gpu.execute(requests))
        responses = answer_each(requests, self._letterbox)
        for request, response in zip(requests, responses, strict=True):
            if response.has_error():
                mark_finished(self._admission, request, answered=False)
        return responses

    def finalize(self) -> None:
        """Hand over the last counts."""
        (self._on_gpu or self._metrics).close()

    def _letterbox(self, request: Any) -> list[Any]:
        encoded = pb_utils.get_input_tensor_by_name(request, contract.IMAGE.name).as_numpy().reshape(-1)
        check_decoding(request, encoded, self._limits, self._admission, self._metrics)
        images = np.empty((len(encoded), *self._input_shape), np.uint8)
        geometry = np.empty((len(encoded), *contract.GEOMETRY.shape), np.float32)
        for index, data in enumerate(encoded):
            try:
                pixels, limits = images[index], self._limits
                place = preprocess(data, pixels, limits, stretch=self._stretch, bilinear=self._bilinear)
                geometry[index] = place.to_array()
            except ImageError as error:
                self._metrics.image_refused(error.reason)
                where = f"image {index + 1} of {len(encoded)}: " if len(encoded) > 1 else ""
                raise ImageError(f"{where}{error}", error.reason) from None
        self._metrics.decoded(len(encoded))
        return [
            pb_utils.Tensor(contract.IMAGES.name, images),
            pb_utils.Tensor(contract.GEOMETRY.name, geometry),
        ]
