"""The first step: rejects wrong parameters, too much to decode, and requests that would wait too long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils

from base.allocator import give_large_blocks_back
from pipeline import contract
from pipeline.decode_work import check_decode_work
from pipeline.errors import OverloadError
from pipeline.images import ImageLimits
from steps.admission import Admission, state_path
from steps.classes import class_count
from steps.metrics import AdmissionMetrics
from steps.python_backend import answer_each, config_parameter, request_parameters

_ANY_SIZE: Final = ImageLimits(max_pixels=2**62, max_bytes=2**62)  # preprocess applies the limits


class TritonPythonModel:
    """Admits or rejects requests; the ticket lets later steps mark them finished."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bound out of the model's configuration."""
        give_large_blocks_back()  # Triton hands this step whole images, and it only counts them
        config = json.loads(args["model_config"])
        self._repository = Path(args["model_repository"]).parent
        self._admission = Admission(state_path(), config_parameter(config, "max_latency_ms", 2000) / 1000)
        self._metrics = AdmissionMetrics(args["model_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself."""
        return answer_each(requests, self._admit, ask_whether_cancelled=False)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self._metrics.close()

    def _admit(self, request: Any) -> list[Any]:
        parameters = request_parameters(request)  # rejected here, before it is admitted
        if parameters.classes:
            parameters.check_classes(class_count(self._repository))
        tensor = pb_utils.get_input_tensor_by_name(request, contract.IMAGE.name)
        images, _ = tensor.shape()
        if images > 1:  # a single one is checked later: looking at it here would take a copy
            check_decode_work(tensor.as_numpy().reshape(-1), self._admission.allowed_s, _ANY_SIZE)
        try:
            ticket = self._admission.admit(images)
        except OverloadError:
            self._metrics.request_refused()
            raise
        return [pb_utils.Tensor(contract.ADMISSION.name, np.tile(ticket, (images, 1)))]
