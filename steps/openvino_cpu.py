"""OpenVINO on a CPU, in bfloat16: the engine of fp16 versions where the processor multiplies bfloat16.

Its fp32 and int8 gain too little over ONNX Runtime's to be served (``python -m bench engines``; docs/performance.md).
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import contract
from steps.onnx_cpu import OUTPUT_NAMES, Engine, Outputs

NAME: Final = "openvino"
BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Of ``/proc/cpuinfo``, on x86-64. On other processors, arm64 among them, this was not measured, and is not used."""

_CPU_INFO: Final = Path("/proc/cpuinfo")


class EngineError(Exception):
    """An engine does not run here; the text says why."""


def usable_openvino(cpu_info: Path = _CPU_INFO) -> str:
    """The version of OpenVINO that this machine can run in bfloat16.

    Args:
        cpu_info: lists the processor's flags, as Linux does on x86-64.

    Raises:
        EngineError: the processor does not multiply bfloat16, or the package is not installed.
    """
    lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if not flags & BF16_FLAGS:
        raise EngineError(f"this processor has none of {', '.join(sorted(BF16_FLAGS))}")
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        raise EngineError("it is not installed (make openvino)") from None


def openvino_engine(model: Path, threads: int, precision: str = "bf16") -> Engine:
    """A network of this project that takes one image at a time, and has run once.

    Args:
        model: the ``model.onnx``; read as it is, nothing is written.
        threads: that work on one image. They sleep while they wait and are bound to no core, as ONNX Runtime's do.
        precision: ``bf16`` or ``f32``, of what the graph has in floating point.

    Raises:
        EngineError: OpenVINO would compute in another precision here.
        Exception: it cannot be imported, or not run this network; OpenVINO raises RuntimeError.
    """
    openvino = importlib.import_module(NAME)
    wanted = getattr(openvino.Type, precision)
    core = openvino.Core()
    network = core.read_model(model.read_bytes())
    _expectations_as_sums(openvino, network)
    shape = [1, *(side.get_length() for side in list(network.input(contract.IMAGES.name).partial_shape)[1:])]
    network.reshape(shape)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": True,  # else it takes physical cores alone, fewer than `threads`
        "INFERENCE_PRECISION_HINT": wanted,
        "EXECUTION_MODE_HINT": "PERFORMANCE",
    }
    compiled = core.compile_model(network, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
    if chosen != wanted:
        raise EngineError(f"it would compute in {chosen.get_type_name()}, not {precision}")
    request = compiled.create_infer_request()
    ports = [compiled.output(name) for name in OUTPUT_NAMES]

    def run(image: NDArray[np.uint8]) -> Outputs:
        request.infer([image])
        candidates, prototypes = (np.array(request.get_tensor(port).data) for port in ports)
        return candidates, prototypes

    run(np.zeros(shape, np.uint8))
    return run


def _expectations_as_sums(openvino: Any, network: Any) -> None:
    """Write the convolutions that take the expectation of a box side's distribution (DFL) as sums of products.

    What follows the last convolution stays in float32. With sums that is softmax and all coordinates; without, boxes
    are off by a quarter more.
    """
    for node in network.get_ops():
        if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weights = node.input_value(1).get_node().data
        size = weights.size
        if weights.shape == (1, size, 1, 1) and np.array_equal(weights.ravel(), np.arange(size)):
            product = openvino.opset13.multiply(node.input_value(0), node.input_value(1))
            node.output(0).replace(openvino.opset13.reduce_sum(product, np.array([1]), True).output(0))
