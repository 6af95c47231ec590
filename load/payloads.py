"""What is sent: encoded images, each with its size and the detections that are expected in it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def load_payloads(options: UserOptions) -> tuple[Payload, ...]:
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
            return tuple(
                _payload(f"{file.stem}@{size:g}MP", encode(at_megapixels(file, size), ".jpg"))
                for file in files
                for size in options.megapixels
            )
        encoded = [file.read_bytes() for file in files] if options.images is not None else as_jpeg(files)
        return tuple(_payload(file.stem, data) for file, data in zip(files, encoded, strict=True))
    except (SourceError, OSError, ImageError) as error:
        raise LoadError(f"images to send: {error}; name others with --images") from error


@contextlib.contextmanager
def calling(protocol: str, url: str, timeout_s: float) -> Iterator[Transport]:
    """A connection to a server.

    Raises:
        LoadError: a call failed.
    """
    with contextlib.closing(Transport(protocol, url, timeout_s)) as transport:
        try:
            yield transport
        except SegmentationError as error:
            raise LoadError(str(error)) from error


def with_expectations(
    payloads: Sequence[Payload], protocol: str, url: str, precision: str, options: UserOptions
) -> tuple[Payload, ...]:
    """Send every payload once to one precision, and note the number of its detections.

    Raises:
        LoadError: it does not answer.
    """
    model, parameters = contract.ensemble_model(precision), options.parameters or {}
    counted = []
    with calling(protocol, url, options.timeout_s) as transport:
        for payload in payloads:
            request = Request((payload.data,), (payload.name,), parameters)
            (result,) = request.parse(transport.infer(model, request.tensor(), parameters))
            counted.append(dataclasses.replace(payload, expected=len(result)))
    return tuple(counted)


def is_ready(protocol: str, url: str, timeout_s: float, precision: str) -> bool:
    """Whether the ensemble of a precision answers.

    Raises:
        LoadError: nothing answers at the url.
    """
    with calling(protocol, url, timeout_s) as transport:
        return transport.is_ready(contract.ensemble_model(precision))


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


def _payload(name: str, data: bytes) -> Payload:
    height, width = decode_image(data, _NO_LIMITS).shape[:2]
    return Payload(name, data, (height, width))
