"""What is sent: encoded images, each with its size and the detections that are expected in it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.errors import SegmentationError
from client.request import Request
from client.transport import Transport
from load.errors import LoadError
from load.options import UserOptions
from load.photographs import as_jpeg, at_megapixels, encode
from pipeline import contract
from pipeline.errors import ImageError
from pipeline.image_files import SourceError, find_images
from pipeline.images import ImageLimits, decode_image
from scenes.reference import fetch_reference

# The server decides what it accepts; here only the size is read.
_NO_LIMITS: Final = ImageLimits(max_pixels=2**30, max_bytes=2**31)


@dataclass(frozen=True)
class Payload:
    """One encoded image and what is known of it."""

    name: str  # for messages
    data: bytes  # the bytes that are sent
    image_size: tuple[int, int]  # height and width in pixels, upright
    expected: int | None = None  # number of detections by the reference precision; None: not asked


def load_payloads(options: UserOptions) -> list[Payload]:
    """Read the images that the options name, in the sizes that they name.

    Raises:
        LoadError: a file is missing or no image.
    """
    try:
        if options.images is not None:
            files = [source.path for source in find_images([options.images])]
        else:
            files = list(fetch_reference().photographs)
        if options.megapixels:
            return [
                _payload(f"{file.stem}@{size:g}MP", encode(at_megapixels(file, size), ".jpg"))
                for file in files
                for size in options.megapixels
            ]
        encoded = [file.read_bytes() for file in files] if options.images is not None else as_jpeg(files)
        return [_payload(file.stem, data) for file, data in zip(files, encoded, strict=True)]
    except (SourceError, OSError, ImageError) as error:
        raise LoadError(f"images to send: {error}; name others with --images") from error


def with_expectations(
    payloads: Sequence[Payload], protocol: str, url: str, precision: str, options: UserOptions
) -> list[Payload]:
    """Send every payload once to one precision, and note the number of its detections.

    Raises:
        LoadError: it does not answer.
    """
    sender = Transport(protocol, url, options.timeout_s)
    parameters = options.parameters or {}
    counted = []
    try:
        for payload in payloads:
            request = Request((payload.data,), (payload.name,), parameters)
            answer = sender.infer(contract.ensemble_model(precision), request.tensor(), parameters)
            counted.append(dataclasses.replace(payload, expected=len(request.parse(answer)[0])))
    except SegmentationError as error:
        raise LoadError(f"{contract.ensemble_model(precision)} gives no reference result: {error}") from error
    finally:
        sender.close()
    return counted


def is_ready(protocol: str, url: str, timeout_s: float, precision: str) -> bool:
    """Whether the ensemble of a precision answers.

    Raises:
        LoadError: nothing answers at the url.
    """
    sender = Transport(protocol, url, timeout_s)
    try:
        return sender.is_ready(contract.ensemble_model(precision))
    except SegmentationError as error:
        raise LoadError(str(error)) from error
    finally:
        sender.close()


def check_ready(protocol: str, url: str, timeout_s: float, precision: str) -> None:
    """Make sure of a model before load is put on it.

    Raises:
        LoadError: nothing answers at the url, or the precision is not served there.
    """
    if not is_ready(protocol, url, timeout_s, precision):
        raise LoadError(
            f"the server at {url} answers, but {contract.ensemble_model(precision)} is not served there; nothing was "
            f"started. Build it with `python -m builder build --precisions {precision}` and restart the server, or "
            "choose another precision"
        )


def save(payloads: Sequence[Payload], path: Path) -> None:
    """Write payloads to a file, for another process of this project."""
    path.write_bytes(pickle.dumps(list(payloads)))


def read(path: Path) -> list[Payload]:
    """Read what :func:`save` wrote."""
    payloads: list[Payload] = pickle.loads(path.read_bytes())  # noqa: S301 - this project wrote it
    return payloads


def _payload(name: str, data: bytes) -> Payload:
    height, width = decode_image(data, _NO_LIMITS).shape[:2]
    return Payload(name, data, (height, width))
