"""int8 for the cpu profile: ONNX Runtime's static quantization in the form that its processor kernels run fastest."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from builder.calibration import CalibrationSet
from builder.export import Export

METHOD = "MinMax, uint8 activations, int8 weights per channel, reduced range, Q/DQ (onnxruntime.quantization)"
"""Unsigned activations with signed weights is the pair with fast kernels on x86-64. The weights' reduced range (7
bits) keeps pairs of products from saturating where the processor has no VNNI (ONNX Runtime, "Quantize ONNX models",
on U8S8), so that a version answers alike on every machine."""


@dataclass(frozen=True)
class Quantization:
    """A quantized network.

    Attributes:
        model: Q/DQ network, inputs and outputs float32.
        quantized_convolutions: how many convolutions run in int8.
        convolutions: how many there are.
    """

    model: onnx.ModelProto
    quantized_convolutions: int
    convolutions: int


def quantize_for_cpu(
    model: onnx.ModelProto,
    export: Export,
    calibration: CalibrationSet,
    exclude: Sequence[str],
    on_image: Callable[[], None],
) -> Quantization:
    """Quantize a float32 network of dynamic batch.

    Args:
        model: float32 network; not changed.
        export: what the export holds.
        calibration: the images that set the ranges.
        exclude: names of nodes that stay in float32.
        on_image: called once per calibration image, for progress.

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
    images = calibration.letterboxed(export.input_height, export.input_width)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(images, None)
            if image is None:
                return None
            on_image()
            return {input_name: image.transpose(2, 0, 1)[None].astype(np.float32) / 255}

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
        quantized = onnx.load(path)
    return Quantization(quantized, *count_quantized_convolutions(quantized))


def count_quantized_convolutions(model: onnx.ModelProto) -> tuple[int, int]:
    """How many convolutions run in int8, and how many there are."""
    return len(quantized_convolutions(model)), sum(node.op_type == "Conv" for node in model.graph.node)


def quantized_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions whose input and weights both come out of DequantizeLinear: they run in int8."""
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and all(producers.get(name) == "DequantizeLinear" for name in list(node.input)[:2])
    ]


def _no_preparation_hint(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
