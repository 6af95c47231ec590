"""How many layers, and how many convolutions, run in which precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from builder.tensorrt.lazy import trt

ENGINE_INSPECTOR: Final = "engine inspector"
NETWORK: Final = "strongly typed network"

_PRECISION: Final = {
    "FLOAT": "fp32",
    "HALF": "fp16",
    "BF16": "bf16",
    "FP8": "fp8",
    "FP4": "fp4",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""Names of ``trt.DataType`` members, as the manifest writes them."""

# Types in the inspector's JSON: "DataType": "Half" (11), "Format/Datatype": "Row major linear FP16 format" (10).
# https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
_INSPECTOR_TYPES: Final = (
    (re.compile(r"\bint8\b", re.I), "int8"),
    (re.compile(r"\b(fp16|half)\b", re.I), "fp16"),
    (re.compile(r"\bbf16\b", re.I), "bf16"),
    (re.compile(r"\bfp8\b", re.I), "fp8"),
    (re.compile(r"\b(fp32|float)\b", re.I), "fp32"),
    (re.compile(r"\bint64\b", re.I), "int64"),
    (re.compile(r"\bint32\b", re.I), "int32"),
    (re.compile(r"\buint8\b", re.I), "uint8"),
    (re.compile(r"\bbool\b", re.I), "bool"),
)
_ONNX_LAYER: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class LayerCounts:
    """Layers per precision.

    Attributes:
        source: ``engine inspector`` (what the plan runs) or ``strongly typed network`` (what it should run).
        layers: layers per type of their first output; shape arithmetic shows up as int64.
        convolutions: convolutions per precision. One counts as int8 when its input and its weights are dequantized
            int8 (in the network) or when it reads int8 (in the engine).
    """

    source: str
    layers: Mapping[str, int]
    convolutions: Mapping[str, int]


def count_network(network: trt.INetworkDefinition) -> LayerCounts:
    """Count the layers of a parsed, strongly typed network by the type of their output.

    Args:
        network: the network; ``trt`` is the flavor that parsed it.

    Returns:
        The counts, with source ``strongly typed network``.
    """
    all_layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(index).name: layer for layer in all_layers for index in range(layer.num_outputs)}

    def reads_int8(layer: trt.ILayer, index: int) -> bool:
        tensor = layer.get_input(index) if index < layer.num_inputs else None
        producer = producers.get(tensor.name) if tensor is not None else None
        return (
            producer is not None
            and producer.type == trt.LayerType.DEQUANTIZE
            and producer.get_input(0).dtype == trt.DataType.INT8
        )

    layers: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    for layer in all_layers:
        dtype = layer.get_output(0).dtype.name
        precision = _PRECISION.get(dtype, dtype.lower())
        layers[precision] += 1
        if layer.type == trt.LayerType.CONVOLUTION:
            if reads_int8(layer, 0) and reads_int8(layer, 1):
                precision = "int8"
            convolutions[precision] += 1
    return LayerCounts(NETWORK, dict(layers), dict(convolutions))


def convolution_names(network: trt.INetworkDefinition) -> frozenset[str]:
    """Names of a parsed network's convolutions, which are those of the ONNX nodes."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return frozenset(layer.name for layer in layers if layer.type == trt.LayerType.CONVOLUTION)


def count_engine(information: str, convolutions: frozenset[str]) -> LayerCounts | None:
    """Count the layers of a deserialized engine.

    Args:
        information: JSON of ``EngineInspector.get_engine_information`` for an engine built with detailed profiling
            verbosity; the schemas of TensorRT 10 and 11 are both read.
        convolutions: names of the network's convolutions.

    Returns:
        The counts, or None when the engine does not say of every convolution in which layer it ended up (a compiler
        backend may fold the whole network into one layer); then count the network.
    """
    try:
        entries = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    layers: Counter[str] = Counter()
    found: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict):  # names only: built without detailed verbosity
            return None
        outputs = [_tensor_precision(tensor) for tensor in entry.get("Outputs", [])]
        layers[outputs[0] if outputs else "unknown"] += 1
        names = convolutions.intersection(_onnx_names(entry))
        if len(names) > 1 and len(names) * 2 > len(convolutions):
            return None
        inputs = [_tensor_precision(tensor) for tensor in entry.get("Inputs", [])]
        for name in names:
            found[name] = inputs[0] if inputs else "unknown"
    if set(found) != convolutions:
        return None
    return LayerCounts(ENGINE_INSPECTOR, dict(layers), dict(Counter(found.values())))


def _onnx_names(entry: Mapping[str, Any]) -> Iterator[str]:
    """ONNX nodes of an engine layer: from its metadata, else from its fused name."""
    metadata = str(entry.get("Metadata", ""))
    names = _ONNX_LAYER.findall(metadata)
    yield from names or re.split(r" \+ | \|\| |, ", str(entry.get("Name", "")))


def _tensor_precision(tensor: Mapping[str, Any]) -> str:
    for key in ("DataType", "Datatype", "Format/Datatype", "Format"):
        text = str(tensor.get(key, ""))
        for pattern, precision in _INSPECTOR_TYPES:
            if pattern.search(text):
                return precision
    return "unknown"
