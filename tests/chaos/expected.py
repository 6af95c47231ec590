"""The answers expected, bit for bit: the same images through ``pipeline`` and the engine, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from client.request import Parameters, parameters_of, parse_response
from load.photographs import at_megapixels
from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess
from pipeline.preprocess import preprocess
from pipeline.result import Segmentation
from scenes.reference import fetch_reference
from steps.cpu_engines import cpu_network

_Value = TypeVar("_Value")

BAD_INPUT: Final[tuple[tuple[str, bytes, Parameters], ...]] = (
    ("no image", b"this is no image", {}),
    ("nothing", b"", {}),
    ("cut short", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00", {}),
    ("too large", b"BM" + bytes(8) + b"\x36\x00\x00\x00\x28\x00\x00\x00" + b"\x00\x00\x01\x00" * 2 + bytes(28), {}),
    ("confidence", b"", {"confidence": 2.0}),
    ("max_detections", b"", {"max_detections": 0}),
    ("mask_format", b"", {"mask_format": "svg"}),
    ("classes", b"", {"classes": "one"}),
    ("unknown parameter", b"", {"treshold": 0.5}),
)
"""Name, image and parameters of requests that must be refused; an empty image is replaced by a good one, but in the
entry ``nothing``."""


@dataclass(frozen=True)
class Case:
    """One image and how it is asked about."""

    name: str  # for messages
    data: bytes  # the encoded image
    parameters: Parameters  # of the request


class Network:
    """The ``model.onnx`` of a version."""

    def __init__(self, path: Path) -> None:
        self._network, _ = cpu_network(path, 1, 1)
        dims = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
        self._shape = [dim.dim_value for dim in dims[1:]]
        self._outputs: dict[bytes, tuple[NDArray[np.float32], NDArray[np.float16], Geometry]] = {}

    def answer(self, case: Case) -> str:
        """Fingerprint of the right answer to a case; an image goes through the network once."""
        if case.data not in self._outputs:
            pixels = np.empty(self._shape, np.uint8)
            geometry = preprocess(case.data, pixels)
            ((candidates, prototypes),) = self._network.run([pixels[None]])
            self._outputs[case.data] = candidates[0], prototypes[0], geometry
        found = postprocess(*self._outputs[case.data], RequestParameters.parse(case.parameters))
        mask_format = str(case.parameters.get("mask_format", RequestParameters.mask_format))
        return fingerprint(parse_response(pack_response([found]), 1, mask_format)[0])


def fingerprint(answer: Segmentation) -> str:
    """A hash over every bit of an answer."""
    digest = hashlib.sha256(repr((len(answer), answer.image_size, answer.mask_format)).encode())
    for array in (answer.boxes, answer.scores, answer.class_ids):
        digest.update(array.tobytes())
    for mask in answer.encoded_masks:
        digest.update(len(mask).to_bytes(8, "little") + mask)
    return digest.hexdigest()


def pictures(megapixels: Sequence[float] = (0.05, 0.3, 1.0, 2.0)) -> dict[str, bytes]:
    """The reference photographs in several sizes and file formats, and pictures at the edges of what is allowed."""
    formats = (".jpg", ".png", ".webp", ".bmp", ".tiff")
    found: dict[str, bytes] = {}
    for number, photograph in enumerate(fetch_reference().photographs):
        for place, size in enumerate(megapixels):
            pixels = at_megapixels(photograph, size)
            extension = formats[(number + place) % len(formats)]
            found[f"{photograph.stem}@{size:g}MP{extension}"] = _encoded(pixels[..., ::-1], extension)
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    found["noise.png"] = _encoded(noise, ".png")
    found["gray.jpg"] = _encoded(cv2.cvtColor(at_megapixels(fetch_reference().photographs[0], 0.5), 7), ".jpg")
    found["one pixel.png"] = _encoded(noise[:1, :1], ".png")
    found["a line.png"] = _encoded(noise[:1], ".png")
    return found


def cases(count: int, seed: int) -> list[Case]:
    """Pictures with parameters drawn at random: every mask format, thresholds and bounds, and the only class."""
    chance = np.random.default_rng(seed)
    images = sorted(pictures().items())
    drawn = []
    for number in range(count):
        name, data = images[number % len(images)]
        chosen = parameters_of(
            confidence=_maybe(chance, [0.01, 0.1, 0.25, 0.5, 0.9]),
            iou=_maybe(chance, [0.0, 0.3, 0.45, 0.7, 1.0]),
            max_detections=_maybe(chance, [1, 2, 10, 300]),
            mask_format=contract.MASK_FORMATS[number % len(contract.MASK_FORMATS)],
            classes=_maybe(chance, [[0]]),
        )
        drawn.append(Case(f"{name} {chosen}", data, chosen))
    return drawn


def _maybe(chance: np.random.Generator, values: Sequence[_Value]) -> _Value | None:
    """One of the values, or None as often as not."""
    return values[int(chance.integers(len(values)))] if chance.random() < 0.5 else None


def _encoded(bgr: NDArray[Any], extension: str) -> bytes:
    done, data = cv2.imencode(extension, bgr)
    if not done:
        raise ValueError(f"OpenCV cannot encode {extension}")
    return data.tobytes()
