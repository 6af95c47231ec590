"""KServe v2 inference between HTTP and gRPC: one HTTP body to one ``ModelInferRequest``, and its answer back.

Formats: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``; triton-inference-server/server,
``docs/protocol/extension_binary_data.md``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from gateway.errors import Refusal, refuse
from gateway.json_text import dump, parse_object
from gateway.limits import Limits

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""HTTP header: bytes of the JSON in front of the binary data."""

_DTYPES: Final[dict[str, type[np.generic]]] = {
    "BOOL": np.bool_,
    **{f"UINT{bits}": np.dtype(f"u{bits // 8}").type for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)},
    "FP32": np.float32,
    "FP64": np.float64,
}
_SIZES: Final = {name: np.dtype(dtype).itemsize for name, dtype in _DTYPES.items()} | {"FP16": 2, "BF16": 2}
_DATATYPES: Final = (*_SIZES, "BYTES")
_RAW_INPUT_CONTENTS: Final = bytes([7 << 3 | 2])  # the tag of ModelInferRequest.raw_input_contents, length-delimited


@dataclass
class InferCall:
    """One inference, ready to be sent.

    Attributes:
        request: without the tensors' data.
        raw: the data of each input, in order, in one or more parts.
        binary: outputs that are to be answered as binary data (True) or JSON (False), by name.
        binary_by_default: the same for all others.
    """

    request: Any
    raw: list[Sequence[bytes | bytearray | memoryview]] = field(default_factory=list)
    binary: dict[str, bool] = field(default_factory=dict)
    binary_by_default: bool = False

    def serialized(self) -> bytes:
        """The request as protobuf writes it. Written here, a tensor is copied once and not three times."""
        parts: list[bytes | bytearray | memoryview] = [self.request.SerializeToString()]
        for data in self.raw:
            parts += [_RAW_INPUT_CONTENTS, _varint(sum(map(len, data))), *data]
        return b"".join(parts)


@dataclass(frozen=True)
class InferAnswer:
    """Body of an HTTP answer.

    Attributes:
        body: JSON, and binary data behind it.
        json_bytes: of the JSON; None where there is no binary data.
    """

    body: bytes
    json_bytes: int | None


def parse_infer(
    model: str,
    version: str,
    body: bytes,
    json_bytes: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> InferCall:
    """Read one inference request.

    Args:
        model: from the path; likewise the version, which may be empty.
        version: see ``model``.
        body: of the request.
        json_bytes: the value of :data:`JSON_LENGTH_HEADER`; None if the body is JSON only.
        limits: of a request.

    Raises:
        Refusal: it is at fault.
    """
    length = _json_length(json_bytes, len(body))
    root = parse_object(body[:length], limits)
    try:
        request = service_pb2.ModelInferRequest(
            model_name=model, model_version=version, id=_text(root.get("id", ""), "id", limits.name_length, 0)
        )
        call = InferCall(request)
        _add_parameters(call, root.get("parameters", {}), limits)
        data = _add_inputs(call, _objects(root, "inputs", limits), memoryview(body)[length:], limits)
        _add_outputs(call, _objects(root, "outputs", limits) if "outputs" in root else [], limits)
    except UnicodeEncodeError:
        refuse("the request has a text that is no Unicode (half of a surrogate pair)")
    if data:
        refuse(
            f"{len(data)} bytes of binary data are left over; binary_data_size of the inputs must add up to all of it"
        )
    return call


def render_infer(response: Any, call: InferCall, limits: Limits = Limits()) -> InferAnswer:  # noqa: B008 - frozen
    """Write the answer of an inference.

    Args:
        response: ``ModelInferResponse``.
        call: what was asked.
        limits: of an answer.

    Raises:
        Refusal: an output cannot be written as JSON, which was asked for.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise Refusal("the inference server sent outputs without data", status=500)  # type: ignore[arg-type]
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = _values(response.parameters)
    head["outputs"] = outputs = []
    behind: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _values(output.parameters)
        if call.binary.get(output.name, call.binary_by_default):
            parameters["binary_data_size"] = len(raw)
            behind.append(raw)
        else:
            entry["data"] = _json_data(output, raw, limits)
        outputs.append(entry | ({"parameters": parameters} if parameters else {}))
    try:
        text = dump(head)
    except ValueError:
        refuse("an output has NaN or infinite numbers, which JSON cannot hold; ask for binary_data")
    return InferAnswer(b"".join([text, *behind]), len(text) if behind else None)


def _json_length(header: str | None, body_bytes: int) -> int:
    if header is None:
        return body_bytes
    allowed = f"allowed: bytes of the JSON, 1 to {body_bytes}, the length of the body"
    if not (header.isascii() and header.isdigit() and len(header) < 20 and 1 <= int(header) <= body_bytes):
        refuse(f"{JSON_LENGTH_HEADER} is {header[:40]!r}; {allowed}")
    return int(header)


def _text(value: Any, what: str, longest: int, shortest: int = 1) -> str:
    if not isinstance(value, str) or not shortest <= len(value) <= longest or "\0" in value:
        refuse(f"{what} is {_shown(value)}; allowed: a text of {shortest} to {longest} letters without NUL")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def _objects(root: Mapping[str, Any], name: str, limits: Limits) -> Sequence[Mapping[str, Any]]:
    found = root.get(name)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        refuse(f"{name!r} is {_shown(found)}; allowed: a list of objects")
    if len(found) > limits.tensors:
        refuse(f"{name!r} has {len(found)} entries; allowed: {limits.tensors}")
    return found


def _parameters(entry: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        refuse(f"'parameters' of {of} is {_shown(found)}; allowed: an object")
    if any(name.startswith("shared_memory") for name in found):
        refuse(f"{of} is in shared memory, which is not offered over HTTP; send it as binary data")
    return found


def _add_parameters(call: InferCall, parameters: Any, limits: Limits) -> None:
    if not isinstance(parameters, dict) or len(parameters) > limits.parameters:
        refuse(f"'parameters' is {_shown(parameters)}; allowed: an object of at most {limits.parameters} parameters")
    for name, value in parameters.items():
        _text(name, "the name of a parameter", limits.name_length)
        if name == "binary_data_output":
            call.binary_by_default = _flag(value, name)
            continue
        if name.startswith("triton_"):
            refuse(f"parameter {name!r}: names that begin with 'triton_' are the server's own; leave it out")
        target = call.request.parameters[name]
        if isinstance(value, bool):
            target.bool_param = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                refuse(f"parameter {name!r} is {value}; allowed: whole numbers of 64 bits")
            target.int64_param = value
        elif isinstance(value, float):
            if not math.isfinite(value):
                refuse(f"parameter {name!r} is infinite; allowed: finite numbers")
            target.double_param = value
        elif isinstance(value, str):
            if len(value) > limits.text_length:
                refuse(f"parameter {name!r} has {len(value)} letters; allowed: {limits.text_length}")
            target.string_param = value
        else:
            refuse(f"parameter {name!r} is {_shown(value)}; allowed: a text, a number, true or false")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        refuse(f"{name!r} is {_shown(value)}; allowed: true or false")
    return value


def _add_inputs(call: InferCall, inputs: Sequence[Mapping[str, Any]], data: memoryview, limits: Limits) -> memoryview:
    """Add the inputs; returns the binary data that is left."""
    for entry in inputs:
        name = _text(entry.get("name"), "the name of an input", limits.name_length)
        of = f"input {name!r}"
        datatype = entry.get("datatype")
        if datatype not in _DATATYPES:
            refuse(f"datatype of {of} is {_shown(datatype)}; allowed: {', '.join(_DATATYPES)}")
        shape = entry.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) > limits.dimensions
            or not all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 2**31 for side in shape)
        ):
            refuse(f"shape of {of} is {_shown(shape)}; allowed: at most {limits.dimensions} whole numbers from 0 on")
        parameters = _parameters(entry, of)
        size = parameters.get("binary_data_size")
        if (size is None) == ("data" not in entry):
            refuse(f"{of} must have either 'data' or 'binary_data_size'")
        raw: bytes | memoryview
        if size is None:
            raw = _from_json(entry["data"], datatype, of)
        else:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(data):
                refuse(
                    f"binary_data_size of {of} is {_shown(size)}; allowed: 0 to {len(data)}, which is left of the body"
                )
            raw, data = data[:size], data[size:]
        _check_size(raw, datatype, math.prod(shape), of, limits)
        call.request.inputs.add(name=name, datatype=datatype, shape=shape)
        call.raw.append((raw,))
    return data


def _check_size(raw: bytes | memoryview, datatype: str, elements: int, of: str, limits: Limits) -> None:
    if datatype != "BYTES":
        expected = elements * _SIZES[datatype]
        if len(raw) != expected:
            refuse(f"{of} has {len(raw)} bytes; its shape and datatype need {expected}")
        return
    if elements > limits.bytes_elements:
        refuse(f"{of} has {elements} elements by its shape; allowed: {limits.bytes_elements} of BYTES")
    count = sum(1 for _ in _elements(raw, elements, of))
    if count != elements:
        refuse(f"{of} has {count} elements; its shape needs {elements}")


def _elements(raw: bytes | memoryview, most: int, of: str) -> Iterator[bytes | memoryview]:
    """The elements of a BYTES tensor: each behind its length in four bytes, the least first."""
    start = 0
    for _ in range(most):
        if start >= len(raw):
            return
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw) or start + 4 > len(raw):
            break
        yield raw[start + 4 : end]
        start = end
    if start != len(raw):
        refuse(
            f"{of} is no list of {most} elements, each behind its length in four bytes (the least first): "
            f"{len(raw) - start} of its {len(raw)} bytes are left over"
        )


def _add_outputs(call: InferCall, outputs: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    for entry in outputs:
        name = _text(entry.get("name"), "the name of an output", limits.name_length)
        parameters = _parameters(entry, f"output {name!r}")
        output = call.request.outputs.add(name=name)
        if "binary_data" in parameters:
            call.binary[name] = _flag(parameters["binary_data"], "binary_data")
        if "classification" in parameters:
            count = parameters["classification"]
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**31:
                refuse(f"classification of output {name!r} is {_shown(count)}; allowed: a whole number")
            output.parameters["classification"].int64_param = count


def _from_json(data: Any, datatype: str, of: str) -> bytes:
    values = list(_flat(data))
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            refuse(f"data of {of} is {_shown(data)}; allowed: texts")
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(element)) + element for element in encoded)
    if datatype not in _DTYPES:
        refuse(f"{of} is {datatype}, which JSON cannot hold; send it as binary data")
    dtype = np.dtype(_DTYPES[datatype])
    if dtype.kind == "b":
        right = all(isinstance(value, bool) for value in values)
    elif dtype.kind == "f":
        right = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    else:
        signed = dtype.kind == "i"
        bits = 8 * dtype.itemsize
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        right = all(
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= most for value in values
        )
    if not right:
        refuse(f"data of {of} is {_shown(data)}; allowed: values of {datatype}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype).tobytes()


def _flat(data: Any) -> Iterator[Any]:
    """The values of nested lists, which the bound on depth has made shallow."""
    if not isinstance(data, list):
        yield data
        return
    for entry in data:
        if isinstance(entry, list):
            yield from _flat(entry)
        else:
            yield entry


def _json_data(output: Any, raw: bytes, limits: Limits) -> list[Any]:
    of = f"output {output.name!r}"
    remedy = "ask for it as binary data (binary_data of the output, or binary_data_output)"
    elements = math.prod(output.shape)
    if elements > limits.json_elements:
        refuse(f"{of} has {elements} elements; allowed as JSON: {limits.json_elements}. For more, {remedy}")
    if output.datatype == "BYTES":
        try:
            return [bytes(element).decode() for element in _elements(raw, elements, of)]
        except UnicodeDecodeError:
            refuse(f"{of} is no UTF-8, which JSON cannot hold; {remedy}, or for a mask_format that is text")
    if output.datatype not in _DTYPES:
        refuse(f"{of} is {output.datatype}, which JSON cannot hold; {remedy}")
    values: NDArray[Any] = np.frombuffer(raw, _DTYPES[output.datatype])
    return list(values.tolist())


def _values(parameters: Any) -> dict[str, Any]:
    """``InferParameter``s as plain values."""
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in kinds.items() if kind}


def _varint(number: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the least first."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
