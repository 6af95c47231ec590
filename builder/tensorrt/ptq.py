"""int8 by ModelOpt's post-training quantization: Q/DQ nodes with scales calibrated on images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from builder.quantizers import count_convolutions
from builder.tensorrt.autocast import check_images
from builder.tensorrt.errors import ConversionError
from builder.tensorrt.exclusions import Exclusion, exact_patterns, int8_exclusions, names_of
from builder.tensorrt.modelopt_env import import_modelopt, log_level, off_terminal, own_onnxruntime
from pipeline import contract

_LOGGER = logging.getLogger(__name__)

CalibrationMethod = Literal["max", "entropy"]


@dataclass(frozen=True)
class QuantizedModel:
    """An int8 Q/DQ network.

    Attributes:
        model: the ONNX model, fp32 but for its Q/DQ nodes; inputs and outputs keep their types.
        exclusions: the groups of nodes that were left out by default.
        excluded: every node that was left out.
    """

    model: onnx.ModelProto
    exclusions: tuple[Exclusion, ...]
    excluded: tuple[str, ...]


def quantize(
    onnx_path: Path,
    images: NDArray[np.uint8],
    exclude: Iterable[str] = (),
    method: CalibrationMethod = "max",
) -> QuantizedModel:
    """Quantize a network to int8: symmetric, weights per channel, activations per tensor.

    The result is fp32 around its Q/DQ nodes; ``autocast.convert_to_fp16`` makes the rest fp16 for the plan. (ModelOpt's
    own ``high_precision_dtype="fp16"`` would turn the decoding's coordinates into fp16 as well.)

    Args:
        onnx_path: fp32 network with input ``images``, uint8 [batch, height, width, 3], every node named.
        images: uint8 [n, height, width, 3], letterboxed RGB images like those the network will see, 1 or more.
            ModelOpt would invent random ones without any; here that is an error.
        exclude: further nodes to leave out, by name.
        method: ``max`` (largest absolute value) or ``entropy`` (clips outliers).

    Returns:
        The quantized network.

    Raises:
        ToolchainError: ModelOpt is missing.
        ConversionError: there are no images, a name is unknown, ModelOpt fails, or it quantized no convolution.
    """
    check_images(images)
    if method not in get_args(CalibrationMethod):
        raise ConversionError(f"calibration method {method!r}; allowed: {', '.join(get_args(CalibrationMethod))}")
    source = onnx.load(onnx_path)
    exclusions = int8_exclusions(source)
    excluded = names_of(exclusions, exclude)
    _check_names(source, excluded)
    quantization = import_modelopt("modelopt.onnx.quantization")
    height, width = images.shape[1:3]
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        # ModelOpt writes its intermediate files beside its input.
        copy, output = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        onnx.save(source, copy)
        try:
            with off_terminal(), own_onnxruntime():
                quantization.quantize(
                    onnx_path=str(copy),
                    quantize_mode="int8",
                    calibration_data={contract.IMAGES.name: images},
                    calibration_method=method,
                    calibration_shapes=f"{contract.IMAGES.name}:1x{height}x{width}x3",
                    # The CUDA and TensorRT providers crash in places, and the CPU is everywhere.
                    calibration_eps=["cpu"],
                    nodes_to_exclude=exact_patterns(excluded),
                    high_precision_dtype="fp32",
                    output_path=str(output),
                    log_level=log_level(),
                )
        except Exception as error:  # ModelOpt, its helpers and ONNX Runtime each have their exception types
            raise ConversionError(
                f"ModelOpt does not quantize {onnx_path.name}: {error or type(error).__name__}. Keep fp16, or exclude "
                "the node that the message names"
            ) from error
        model = onnx.load(output)
    quantized, convolutions = count_convolutions(model)
    if not quantized:
        raise ConversionError(f"ModelOpt quantized none of the {convolutions} convolutions; exclude fewer nodes")
    _LOGGER.info("int8: %d of %d convolutions, %d images", quantized, convolutions, len(images))
    return QuantizedModel(model, exclusions, excluded)


def _check_names(model: onnx.ModelProto, names: Iterable[str]) -> None:
    known = {node.name for node in model.graph.node}
    if "" in known:
        raise ConversionError("the network has nodes without a name; name them before quantizing")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConversionError(
            f"no such nodes to exclude: {', '.join(unknown)}; give node names of the ONNX, such as "
            "/model.22/proto/cv3/conv/Conv"
        )
