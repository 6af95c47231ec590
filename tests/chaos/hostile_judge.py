"""What may become of a hostile input, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult
from tritonclient.utils import triton_to_np_dtype

from client.errors import ServerError
from client.request import parse_response
from pipeline import contract
from pipeline.decode_work import REQUEST_DECODE_S, check_decode_work
from pipeline.errors import BUSY, ImageError
from pipeline.images import decode_image
from pipeline.result import Segmentation
from tests.chaos.corpus_valid import Sample
from tests.chaos.protocol import Malformed

_CALLERS_FAULT: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
_UNREAD_JSON: Final = ("failed to parse the request JSON buffer", "Unable to parse '")
"""Triton 2.51 answers JSON that it cannot read with status 500 and one of these texts."""
_OTHER_REFUSALS: Final = (
    # gRPC's own library, for bytes that are not the method's message: its documentation of status codes says so.
    (grpc.StatusCode.INTERNAL, "Unable to parse request"),
    # Triton 2.51, for methods that need the secret.
    (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted"),
)
_DECODED: Final = 5


Input = Sample | Malformed


@dataclass(frozen=True)
class Answer:
    """What came back."""

    # ``answered``, ``refused``, ``closed`` (the connection, without an answer), or a status that is none of these
    result: str
    text: str = ""  # the server's words
    segmentations: tuple[Segmentation, ...] = ()  # per image, where it was answered


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    kind: str  # of the input
    name: str  # of the input
    result: str  # see :class:`Answer`
    seconds: float  # until it was known
    fault: str = ""  # what is wrong with that; empty if nothing is


def read_grpc(response: Any, mask_format: str = "rle") -> Answer:
    """A ``ModelInferResponse``."""
    result = InferResult(response)
    return _answered({output.name: result.as_numpy(output.name) for output in response.outputs}, mask_format)


def read_refusal(error: Any) -> Answer:
    """A gRPC error."""
    code, text = error.code(), str(error.details()) or error.code().name
    if code in _CALLERS_FAULT or any(code is status and text.startswith(words) for status, words in _OTHER_REFUSALS):
        return Answer("refused", text)
    return Answer(f"gRPC {error.code().name}", text)


def read_http(status: int | None, body: bytes) -> Answer:
    """An HTTP answer; no status if the connection was closed without one."""
    if status is None:
        return Answer("closed")
    text = body.decode(errors="replace")
    if status == 200:
        try:
            outputs = json.loads(body)["outputs"]
            return _answered({output["name"]: _from_json(output) for output in outputs})
        except (ValueError, KeyError, TypeError) as error:
            return Answer("answer that cannot be read", f"{error!r}: {text[:100]}")
    unread = status == 500 and any(words in text for words in _UNREAD_JSON)
    if 400 <= status < 500 or unread:
        try:
            return Answer("refused", str(json.loads(text)["error"]))
        except (ValueError, KeyError, TypeError):
            return Answer("refused", text)
    return Answer(f"HTTP {status}", text)


def _from_json(output: Mapping[str, Any]) -> NDArray[Any]:
    values = output["data"]
    if output["datatype"] == "BYTES":
        flat = np.array([text.encode() for text in values] + [None], np.object_)[:-1]
    else:
        flat = np.array(values, triton_to_np_dtype(output["datatype"]))
    return flat.reshape(output["shape"])


def _answered(tensors: Mapping[str, NDArray[Any]], mask_format: str = "rle") -> Answer:
    try:
        batch = len(tensors[contract.NUM_DETECTIONS.name])
        return Answer("answered", segmentations=tuple(parse_response(tensors, batch, mask_format)))
    except (ServerError, KeyError) as error:
        return Answer("answer that cannot be read", str(error))


def image_fault(sample: Sample, answer: Answer) -> str:
    """What is wrong with the answer to an image, compared with the pipeline's own; empty if nothing is."""
    size: tuple[int, ...] = ()
    refusals = []
    try:  # the work of decoding is refused first, where the server's bound on latency makes it too much
        check_decode_work([sample.data], REQUEST_DECODE_S)
    except ImageError as error:
        refusals.append(str(error))
    try:
        size = decode_image(sample.data).shape[:2]
    except ImageError as error:
        refusals.append(str(error))
    refusal = " or ".join(refusals)
    expected = "refused" if refusals else "answered"
    if sample.expects not in ("any", expected):
        return f"the pipeline: {expected} {refusal!r}; expected: {sample.expects}"
    if answer.result != expected:
        return f"{answer.result} ({answer.text[:200]}); expected: {expected} {refusal}"
    if refusals:
        right = any(text[:60] in answer.text for text in refusals)
        return "" if right else f"refused with {answer.text[:200]!r}; expected: {refusal}"
    sizes = [found.image_size for found in answer.segmentations]
    return masks_fault(answer) or ("" if sizes == [size] else f"results of sizes {sizes} for an image of {size}")


def request_fault(request: Malformed, answer: Answer) -> str:
    """What is wrong with the answer to a malformed request; empty if nothing is."""
    allowed = {"refused"} | ({"answered"} if request.valid else set()) | ({"closed"} if request.may_close else set())
    if request.may_be_busy and answer.result == "gRPC UNAVAILABLE" and BUSY in answer.text:
        return ""
    if answer.result not in allowed:
        return f"{answer.result} ({answer.text[:200]}); allowed: {', '.join(sorted(allowed))}"
    if answer.result == "refused" and BUSY in answer.text:
        return "the server was busy"
    if answer.result == "refused" and not answer.text and not request.may_close:
        return "refused without a word"
    return masks_fault(answer)


def masks_fault(answer: Answer) -> str:
    """What is wrong with the masks of an answer; empty if nothing is. All else was checked when it was read."""
    for found in answer.segmentations:
        # A thousand masks of 49 megapixels do not fit into memory: the first and the last ones stand for all.
        shown = {*range(len(found))[:_DECODED], *range(len(found))[-_DECODED:]} if found.mask_format != "none" else ()
        for index in shown:
            if found.mask(index).shape != found.image_size:
                return f"a mask of shape {found.mask(index).shape}"
    return ""
