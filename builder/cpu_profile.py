"""The cpu profile: fp16 and int8 networks for ONNX Runtime inside Triton's Python backend."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from base.progress import Steps
from builder.artifact import Artifact
from builder.datasets import CalibrationSet
from builder.errors import BuilderError, CalibrationError
from builder.export import Export
from builder.families.head import find_head
from builder.quantizers import count_convolutions, nodes_to_exclude, remove_quantizers
from builder.settings import BuildSettings
from builder.surgery import PROTOTYPES_NODE, graft_ends

_CALIBRATED_TOGETHER: Final = 4
METHOD: Final = "MinMax, uint8 activations, int8 weights per channel, reduced range, Q/DQ (onnxruntime.quantization)"
"""Unsigned activations with signed weights is the pair with fast kernels on x86-64. The weights' reduced range (7
bits) keeps pairs of products from saturating on processors without VNNI (ONNX Runtime, "Quantize ONNX models", on
U8S8), so a version answers alike on every machine."""


class CpuProfile:
    """Makes networks that ONNX Runtime runs well on processors."""

    name = "cpu"

    def __init__(
        self,
        settings: BuildSettings,
        export: Export,
        network: onnx.ModelProto,
        calibration: CalibrationSet | None,
        steps: Steps,
    ) -> None:
        """Take what all precisions share.

        Args:
            settings: the build's.
            export: what the export holds.
            network: float32 network of dynamic batch, without the grafted ends.
            calibration: images for int8.
            steps: where progress is shown.

        Raises:
            BuilderError: the settings exclude something that the network does not have.
        """
        self._settings, self._export, self._network = settings, export, network
        self._head = find_head(network, *export.layout.detections)
        self._calibration, self._steps = calibration, steps
        self._exclude = nodes_to_exclude(settings.exclude, network)

    @functools.cached_property
    def reference(self) -> onnx.ModelProto:
        """The grafted fp32 network."""
        return self._graft(self._network)

    def make(self, precision: str, exclude: frozenset[str]) -> Artifact:
        """Make one precision; see :class:`builder.artifact.Profile`."""
        if precision == "int8":
            return self._int8(exclude)
        return self._fp16() if precision == "fp16" else self._fp32()

    def facts(self, precision: str) -> dict[str, Any]:
        """What determines the result."""
        if precision != "int8":
            return {}
        images = self._calibration.sha256 if self._calibration else None
        return {"calibration": images, "method": METHOD, "exclude": sorted(self._exclude)}

    def _fp32(self) -> Artifact:
        _, convolutions = count_convolutions(self._network)
        return self._artifact(self.reference, layers={"convolutions": {"fp32": convolutions}})

    def _fp16(self) -> Artifact:
        with self._steps.step("fp16: convert", "weights and activations to half"):
            model = to_float16(self._network, self._head.decode_nodes)
        tail = set(self._head.decode_nodes)
        kept = sum(node.op_type == "Conv" and node.name in tail for node in model.graph.node)
        layers = {"convolutions": {"fp16": count_convolutions(model)[1] - kept, "fp32": kept}}
        return self._artifact(self._graft(model), excluded=self._head.decode_nodes, layers=layers)

    def _int8(self, exclude: frozenset[str]) -> Artifact:
        model, calibration = self._quantized
        quantized = remove_quantizers(model, self._network, exclude)
        done, convolutions = count_convolutions(quantized)
        if not done:
            raise BuilderError(f"none of the {convolutions} convolutions is left in int8; exclude fewer, or keep fp16")
        # ONNX Runtime also rounds the prototypes on their way out, which costs mask accuracy and gains nothing.
        grafted = remove_quantizers(self._graft(quantized), self.reference, {PROTOTYPES_NODE})
        return self._artifact(
            grafted,
            excluded=tuple(dict.fromkeys((*self._excluded, *sorted(exclude)))),
            layers={"convolutions": {"int8": done, "fp32": convolutions - done}},
            calibration=calibration.facts(METHOD),
            quantized=grafted,
        )

    @property
    def _excluded(self) -> tuple[str, ...]:
        # Box and score regression is what int8 hurts most: ultralytics' int8 exports keep these layers in float too.
        return (*self._head.output_convolutions, *self._head.decode_nodes, *self._exclude)

    @functools.cached_property
    def _quantized(self) -> tuple[onnx.ModelProto, CalibrationSet]:
        calibration = self._calibration
        if calibration is None:
            raise CalibrationError("int8 needs images of what the model will see; give a folder with --images")
        if calibration.warning:
            self._steps.warn(calibration.warning)
        detail = METHOD.split(" (", maxsplit=1)[0]
        with self._steps.step("int8: calibrate and quantize", detail, len(calibration)) as advance:
            return quantize_for_cpu(self._network, self._export, calibration, self._excluded, advance), calibration

    def _graft(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return graft_ends(model, self._export, self._settings.top_k)

    @staticmethod
    def _artifact(model: onnx.ModelProto, **facts: Any) -> Artifact:
        return Artifact(model=model, runtime=f"ort{ort.__version__}-cpu", **facts)


def to_float16(model: onnx.ModelProto, keep_float32: Sequence[str]) -> onnx.ModelProto:
    """Convert a network to float16.

    ONNX Runtime's CPU kernels compute most of it in single precision all the same, with casts around: on a CPU this
    shows what half precision costs in accuracy, not what it gains in speed.

    Args:
        model: float32 network; not changed.
        keep_float32: names of nodes that stay in float32. Box coordinates must: at 512 to 1024 pixels a half has
            steps of half a pixel (IEEE 754 binary16, 11 significant bits).

    Returns:
        The converted network; inputs and outputs stay float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = convert_float_to_float16(copy.deepcopy(model), keep_io_types=True, node_block_list=list(keep_float32))
    wrapped = OnnxModel(converted)
    wrapped.topological_sort()
    result: onnx.ModelProto = wrapped.model
    return result


def quantize_for_cpu(
    model: onnx.ModelProto,
    export: Export,
    calibration: CalibrationSet,
    exclude: Sequence[str],
    on_image: Callable[[], None],
) -> onnx.ModelProto:
    """Quantize a float32 network of dynamic batch by :data:`METHOD`.

    Args:
        model: float32 network; not changed.
        export: what the export holds.
        calibration: the images that set the ranges.
        exclude: names of nodes that stay in float32.
        on_image: called once per calibration image, for progress.

    Returns:
        Q/DQ network, inputs and outputs float32.

    Raises:
        CalibrationError: a calibration image cannot be read.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    input_name = model.graph.input[0].name
    wanted = export.layout.family.input
    images = calibration.letterboxed(*export.input_size, stretch=export.stretch)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            # Smallest and largest values of a batch are those of its images, and a batch keeps all cores busy.
            batch = list(itertools.islice(images, _CALIBRATED_TOGETHER))
            for _ in batch:
                on_image()
            return {input_name: wanted.planes(np.stack(batch))} if batch else None

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        # It warns about preparation steps (fusing, symbolic shapes) that this network does not need.
        logging.getLogger().addFilter(_no_preparation_hint)
        try:
            quantize_static(
                copy.deepcopy(model),
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=list(exclude),
            )
        finally:
            logging.getLogger().removeFilter(_no_preparation_hint)
        return onnx.load(path)


def _no_preparation_hint(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
