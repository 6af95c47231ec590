"""The network in the cpu profile: a version's ``model.onnx``, run by ONNX Runtime inside the Python backend."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from pipeline import contract
from serving.python_backend import config_parameter, internal_error


class TritonPythonModel:
    """Runs the requests of one ``execute`` call as one batch.

    The model's configuration may hold the parameter ``intra_op_threads`` (default: the cores this process may use).
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the session of the version that Triton asks for."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = config_parameter(config, "intra_op_threads", len(os.sched_getaffinity(0)))
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the network on the images of all requests at once."""
        parts = [pb_utils.get_input_tensor_by_name(request, contract.IMAGES.name).as_numpy() for request in requests]
        try:
            images = parts[0] if len(parts) == 1 else np.concatenate(parts)
            names = [contract.CANDIDATES.name, contract.PROTOTYPES.name]
            candidates, prototypes = self._session.run(names, {contract.IMAGES.name: images})
        except Exception:  # ONNX Runtime raises types of its own; the server must outlive them all
            error = internal_error("the network")
            return [pb_utils.InferenceResponse(output_tensors=[], error=error) for _ in requests]
        responses = []
        start = 0
        for part in parts:
            end = start + len(part)
            outputs = [
                pb_utils.Tensor(contract.CANDIDATES.name, candidates[start:end]),
                pb_utils.Tensor(contract.PROTOTYPES.name, prototypes[start:end]),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
            start = end
        return responses
