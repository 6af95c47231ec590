"""A version's ``model.onnx`` in the Python backend, run on the processor (cpu) or by :mod:`steps.gpu` (cuda)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from base.cpus import usable_cpus
from pipeline import contract
from steps.cpu_engines import cpu_network
from steps.metrics import SessionTime
from steps.onnx_cpu import OUTPUT_NAMES
from steps.python_backend import (
    cancellation,
    cancelled,
    config_choice,
    config_parameter,
    heartbeat,
    internal_error,
    log,
)

PROVIDERS = ("cpu", "cuda")


class TritonPythonModel:
    """Runs the images of all requests of one ``execute`` call together.

    The model's configuration may hold the parameters ``provider`` (``cpu``, the default, or ``cuda`` for
    :mod:`steps.gpu.model`, and for a step of :mod:`steps.gpu.ensemble` where the model takes pixels) and
    ``intra_op_threads`` (of the provider ``cpu``; by default :func:`base.cpus.usable_cpus`).
    """

    _on_gpu: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version that Triton asks for, and prepare every batch size."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        if config_choice(config, "provider", PROVIDERS) == "cuda":
            names = {tensor["name"] for tensor in (*config["input"], *config["output"])}
            if contract.IMAGES.name in names:
                from steps.gpu.ensemble import NetworkStep, SegmentationStep

                self._on_gpu = (SegmentationStep if contract.MASKS.name in names else NetworkStep)(args)
            else:
                from steps.gpu.model import FusedModel

                self._on_gpu = FusedModel()
                self._on_gpu.initialize(args)
            return
        threads = config_parameter(config, "intra_op_threads", usable_cpus())
        self._network, engine = cpu_network(path, threads, int(config["max_batch_size"]))
        log("info", f"{args['model_name']} version {args['model_version']} runs in {engine}")
        self._time = SessionTime(args["model_name"], args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the network on the images of all requests at once, without those whose callers have gone."""
        if self._on_gpu is not None:
            return list(self._on_gpu.execute(requests))
        waiting = [request for request in requests if not cancelled(request)]
        responses = iter(self._run(waiting) if waiting else [])
        kept = set(map(id, waiting))
        return [next(responses) if id(request) in kept else cancellation() for request in requests]

    def finalize(self) -> None:
        """Hand over the last counts."""
        (self._on_gpu or self._time).close()

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        parts = [pb_utils.get_input_tensor_by_name(request, contract.IMAGES.name).as_numpy() for request in requests]
        images = [part[index : index + 1] for part in parts for index in range(len(part))]
        try:
            with heartbeat().busy(), self._time.measured(len(images)):
                outputs = iter(self._network.run(images))
        except Exception:  # the engines raise their own types
            error = internal_error("the network")
            return [pb_utils.InferenceResponse(output_tensors=[], error=error) for _ in requests]
        responses = []
        for part in parts:
            own = list(zip(*(next(outputs) for _ in part), strict=True))
            tensors = [
                pb_utils.Tensor(name, arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
                for name, arrays in zip(OUTPUT_NAMES, own, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
