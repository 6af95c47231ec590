"""fp16 for the cpu profile: weights and activations in half precision, the decoding tail in single."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx


def to_float16(model: onnx.ModelProto, keep_float32: Sequence[str]) -> onnx.ModelProto:
    """Convert a network to float16.

    ONNX Runtime's processor kernels compute most of it in single precision all the same, with casts around: on a
    CPU this shows what half precision costs in accuracy, not what it gains in speed.

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
