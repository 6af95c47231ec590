"""fp16 by ModelOpt AutoCast: the precision is written into the ONNX, as strongly typed networks need it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from builder.tensorrt.errors import ConversionError
from builder.tensorrt.exclusions import exact_patterns, fp16_exclusions, names_of
from builder.tensorrt.modelopt_env import import_modelopt, off_terminal
from pipeline import contract

_LOGGER = logging.getLogger(__name__)


def convert_to_fp16(
    onnx_path: Path, images: NDArray[np.uint8], exclude: Iterable[str] = ()
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Convert a network to fp16, the decoding of the detections left in fp32.

    Nodes whose values on ``images`` leave fp16's useful range (512 and more) stay in fp32 too. Q/DQ nodes may be in the
    network: for an int8 plan this is the second step, after ``ptq.quantize``.

    Args:
        onnx_path: network with input ``images``, uint8 [batch, height, width, 3].
        images: uint8 [n, height, width, 3], 1 or more letterboxed RGB images: AutoCast runs the network on the first
            one for the range of every value. (Without data it generates some, which fails on a uint8 input.)
        exclude: further nodes to keep in fp32, by name.

    Returns:
        The fp16 network, whose inputs and outputs keep their types; and the nodes that were kept in fp32.

    Raises:
        ToolchainError: ModelOpt is missing.
        ConversionError: there are no images, or ModelOpt fails.
    """
    check_images(images)
    source = onnx.load(onnx_path)
    excluded = names_of(fp16_exclusions(source), exclude)
    autocast = import_modelopt("modelopt.onnx.autocast")
    with tempfile.TemporaryDirectory(prefix="autocast-") as folder:
        data = Path(folder) / "images.npz"
        np.savez(data, **cast("dict[str, Any]", {contract.IMAGES.name: images[:1]}))
        try:
            with off_terminal():
                model = autocast.convert_to_mixed_precision(
                    onnx_path=str(onnx_path),
                    low_precision_type="fp16",
                    nodes_to_exclude=exact_patterns(excluded),
                    keep_io_types=True,
                    calibration_data=str(data),
                    providers=["cpu"],
                )
        except Exception as error:  # ModelOpt, polygraphy and ONNX Runtime each have their exception types
            raise ConversionError(
                f"ModelOpt AutoCast fails on {onnx_path.name}: {error or type(error).__name__}. Keep fp32, or exclude "
                "the node that the message names"
            ) from error
    _LOGGER.info("AutoCast: %d nodes kept in fp32", len(excluded))
    return model, excluded


def check_images(images: NDArray[np.uint8]) -> None:
    """Refuse images that are not uint8 [n, height, width, 3] with n of 1 or more.

    Raises:
        ConversionError: they are not; the message says what they are.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ConversionError(
            f"images are {images.dtype} {list(images.shape)}; needed: uint8 [n, height, width, 3], n of 1 or more"
        )
