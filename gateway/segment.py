"""``POST /v1/segment``: images in, instances out, as JSON or as a picture. Nothing is computed here."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2

from gateway.bodies import Bodies
from gateway.errors import Refusal, refuse
from gateway.form import Sent, read_sent
from gateway.json_text import dump
from gateway.kserve import InferCall
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.models import Model, Models
from gateway.picture import KINDS, Pictures
from gateway.problems import REQUEST_ID
from gateway.triton import Triton
from pipeline import contract
from pipeline.class_names import class_ids, name_of
from pipeline.errors import BUSY
from pipeline.parameters import RequestParameters
from pipeline.result import Segmentation

_JSON: Final = "application/json"
_ACCEPTED: Final = {
    **{kind: kind for kind in (_JSON, *KINDS)},
    "*/*": _JSON,
    "application/*": _JSON,
    "image/*": "image/jpeg",
    "image/jpg": "image/jpeg",
}
_MASK_FORMATS: Final = {"rle": "rle", "polygon": "polygon", "png": "png_base64", "none": "none"}
"""What a caller asks for, and what tritonserver is asked for: a PNG in JSON is base64 text."""

_PASSED_ON: Final = ("confidence", "iou", "max_detections")
_BOX_DIGITS: Final = 2
_SCORE_DIGITS: Final = 5


class Segmenter:
    """Answers ``POST /v1/segment`` and ``GET /v1/models``.

    Args:
        triton: what computes.
        bodies: reads the requests.
        limits: of a request and of all of them.
        metrics: where they are counted.
    """

    def __init__(self, triton: Triton, bodies: Bodies, limits: Limits, metrics: Metrics) -> None:
        self._triton, self._bodies, self._limits, self._metrics = triton, bodies, limits, metrics
        self._models = Models(triton)
        self._pictures = Pictures(limits)
        self._under_way = 0

    def close(self) -> None:
        """End the process that draws pictures."""
        self._pictures.close()

    async def models(self, request: web.Request) -> web.Response:
        """What is served, and the bounds of a request."""
        del request
        served = (await self._models.served()).values()
        limits, usual = self._limits, RequestParameters()
        document = {
            "models": [
                {
                    "precision": model.precision,
                    "name": model.name,
                    "version": model.version,
                    "class_names": list(model.class_names),
                }
                for model in served
            ],
            "defaults": {
                "precision": (await self._models.chosen(None)).precision if served else None,
                "confidence": usual.confidence,
                "iou": usual.iou,
                "max_detections": usual.max_detections,
                "mask_format": usual.mask_format,
            },
            "limits": {
                "body_bytes": limits.body_bytes,
                "images": contract.MAX_REQUEST_BATCH,
                "requests_under_way": limits.under_way,
                "seconds": limits.segment_s,
                "picture_pixels": limits.picture_pixels,
            },
        }
        return web.Response(body=dump(document), content_type=_JSON)

    async def segment(self, request: web.Request) -> web.Response:
        """Find the instances in the images of a request.

        Raises:
            Refusal: the request is at fault, or tritonserver refuses it.
        """
        kind = _wanted(request.headers.getall("Accept", []))
        with self._counted():
            async with self._bodies.read(request) as body:
                sent = read_sent(request, body, self._limits)
                del body
                if kind != _JSON and len(sent.images) > 1:
                    refuse(f"{len(sent.images)} images for one picture; send one at a time, or ask for {_JSON}")
                model = await self._models.chosen(sent.options.get("precision"))
                parameters = _parameters(sent, model, kind)
                started = time.perf_counter()
                answer = await self._triton.infer(
                    _call(model, sent, parameters, request[REQUEST_ID]).serialized(), self._limits.segment_s
                )
                server_s = time.perf_counter() - started
                results = _results(answer, len(sent.images))
                self._metrics.segmented(model.precision, len(results), server_s)
                if kind == _JSON:
                    mask_format = parameters["mask_format"]
                    answered = _document(results, sent, model, mask_format, request[REQUEST_ID], server_s)
                else:
                    result = results[0].segmentation(model.class_names)
                    answered = await self._pictures.draw(bytes(sent.images[0]), result, kind)
        timing = f"tritonserver;dur={server_s * 1e3:.1f}"
        return web.Response(body=answered, headers={"Content-Type": kind, "Server-Timing": timing, "Vary": "Accept"})

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._under_way >= self._limits.under_way:
            raise Refusal(f"{BUSY}: {self._under_way} requests are under way; try again", HTTPStatus.TOO_MANY_REQUESTS)
        self._under_way += 1
        self._metrics.under_way.set(self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1
            self._metrics.under_way.set(self._under_way)


def _wanted(accept: list[str]) -> str:
    """The content type of the answer: the first that is possible, in the order of the caller's weights."""
    wishes = [part.split(";") for part in ",".join(accept).split(",") if part.strip()]
    if not wishes:
        return _JSON
    weighed = sorted(((_weight(parameters), name.strip().lower()) for name, *parameters in wishes), key=lambda w: -w[0])
    found = next((_ACCEPTED[name] for weight, name in weighed if weight > 0 and name in _ACCEPTED), None)
    if found is None:
        raise Refusal(
            f"Accept is {', '.join(accept)[:100]!r}; allowed: {', '.join((_JSON, *KINDS))}", HTTPStatus.NOT_ACCEPTABLE
        )
    return found


def _weight(parameters: list[str]) -> float:
    for one in parameters:
        name, _, value = one.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _parameters(sent: Sent, model: Model, kind: str) -> dict[str, str]:
    """KServe request parameters, checked as the server does.

    Raises:
        ParameterError: one is at fault.
    """
    asked = {name: sent.options[name] for name in _PASSED_ON if name in sent.options}
    mask_format = sent.options.get("mask_format", "rle")
    if mask_format not in _MASK_FORMATS:
        refuse(f"parameter 'mask_format' is {mask_format[:40]!r}; allowed: {', '.join(_MASK_FORMATS)}")
    asked["mask_format"] = _MASK_FORMATS[mask_format] if kind == _JSON else "rle"
    if "classes" in sent.options:
        asked["classes"] = ",".join(map(str, class_ids(sent.options.getall("classes"), model.class_names)))
    RequestParameters.parse({name: value[:100] for name, value in asked.items() if name != "classes"})
    return asked


def _call(model: Model, sent: Sent, parameters: dict[str, str], request_id: str) -> InferCall:
    request = service_pb2.ModelInferRequest(model_name=model.name, id=request_id)
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    request.inputs.add(
        name=contract.IMAGE.name, datatype=contract.IMAGE.dtype, shape=[len(sent.images), *contract.IMAGE.shape]
    )
    data = [part for image in sent.images for part in (len(image).to_bytes(4, "little"), image)]
    return InferCall(request, [data])


@dataclass(frozen=True)
class _Found:
    """The detections of one image: :class:`Segmentation` as plain values, which NumPy would take longer for."""

    boxes: Sequence[float]  # four for each
    scores: Sequence[float]
    class_ids: Sequence[int]
    masks: list[bytes]
    height: int
    width: int

    def segmentation(self, class_names: tuple[str, ...]) -> Segmentation:
        """What an overlay is drawn of; the masks must be COCO RLE."""
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        scores, ids = np.array(self.scores, np.float32), np.array(self.class_ids, np.int32)
        return Segmentation(boxes, scores, ids, tuple(self.masks), "rle", (self.height, self.width), class_names)


def _results(answer: Any, batch: int) -> list[_Found]:
    """The tensors of an answer, cut to the detections of each image."""
    raw = {output.name: data for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    missing = [spec.name for spec in contract.RESPONSE_TENSORS if spec.name not in raw]
    if missing:
        raise Refusal(
            f"{answer.model_name} answers without {missing[0]!r}: it is no ensemble of this project",
            HTTPStatus.BAD_GATEWAY,
        )

    masks = list(_elements(raw[contract.MASKS.name]))
    deep = len(masks) // batch

    def values(spec: contract.TensorSpec, code: str, count: int) -> Any:
        return struct.unpack(f"<{count}{code}", raw[spec.name])  # its size must be right

    counts, sizes = values(contract.NUM_DETECTIONS, "i", batch), values(contract.IMAGE_SIZE, "i", 2 * batch)
    boxes = values(contract.BOXES, "f", 4 * deep * batch)
    scores, ids = values(contract.SCORES, "f", deep * batch), values(contract.CLASS_IDS, "i", deep * batch)
    found = []
    for index, count in enumerate(counts):
        start, end = index * deep, index * deep + count
        height, width = sizes[2 * index : 2 * index + 2]
        found.append(
            _Found(boxes[4 * start : 4 * end], scores[start:end], ids[start:end], masks[start:end], height, width)
        )
    return found


def _elements(data: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor that tritonserver sent."""
    start = 0
    while start < len(data):
        (size,) = struct.unpack_from("<I", data, start)
        yield data[start + 4 : start + 4 + size]
        start += 4 + size


def _document(
    results: list[_Found], sent: Sent, model: Model, mask_format: str, request_id: str, server_s: float
) -> bytes:
    return dump(
        {
            "model": {"name": model.name, "precision": model.precision, "version": model.version},
            "request_id": request_id,
            "server_ms": round(server_s * 1e3, 1),
            "images": [
                {
                    "name": name,
                    "width": result.width,
                    "height": result.height,
                    "detections": _detections(result, mask_format, model.class_names),
                }
                for name, result in zip(sent.names, results, strict=True)
            ],
        }
    )


def _detections(result: _Found, mask_format: str, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for number, (score, index, mask) in enumerate(zip(result.scores, result.class_ids, result.masks, strict=True)):
        one = {
            "class_id": index,
            "class_name": name_of(index, class_names),
            "score": round(score, _SCORE_DIGITS),
            "box": [round(side, _BOX_DIGITS) for side in result.boxes[4 * number : 4 * number + 4]],
        }
        if mask_format == "rle":
            one["mask"] = {"size": [result.height, result.width], "counts": mask.decode()}
        elif mask_format != "none":
            one["mask"] = json.loads(mask) if mask_format == "polygon" else mask.decode()
        found.append(one)
    return found
