"""What the benchmarks look at, and with: the reference photographs at any size, and the networks that are served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import decode_image
from repository.store import ModelRepository

JPEG_QUALITY: Final = 90


def as_jpeg(photographs: Sequence[Path]) -> list[bytes]:
    """The photographs (0.2 to 0.8 megapixels) encoded as JPEG, as a camera or a website would send them."""
    return [encode(decode_image(path.read_bytes()), ".jpg") for path in photographs]


def at_megapixels(photograph: Path, megapixels: float) -> NDArray[np.uint8]:
    """A photograph enlarged or reduced to a number of megapixels, its aspect ratio kept: uint8 [h, w, 3] RGB."""
    image = decode_image(photograph.read_bytes())
    factor = (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    method = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def encode(image: NDArray[np.uint8], extension: str) -> bytes:
    """Encode uint8 [h, w, 3] RGB; JPEG in the quality :data:`JPEG_QUALITY`.

    Raises:
        ValueError: OpenCV has no encoder for the extension.
    """
    done, data = cv2.imencode(extension, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"OpenCV cannot encode {extension!r}")
    return data.tobytes()


def network_path(repository: Path, precision: str) -> Path:
    """The ``model.onnx`` that is served under the profile cpu.

    Raises:
        RepositoryError: the model's configuration is missing or broken.
    """
    opened = ModelRepository(repository)
    return opened.model_folder(precision) / str(opened.promoted(precision, "cpu")[-1]) / "model.onnx"
