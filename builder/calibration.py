"""Calibration images: found, decoded and letterboxed by the very code that serves, and hashed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from builder.errors import CalibrationError
from pipeline import image_files as sources
from pipeline.errors import ImageError
from pipeline.images import decode_image
from pipeline.letterbox import letterbox

ADVISED_IMAGES: Final = 500
"""What NVIDIA's Model Optimizer advises at least for convolutional networks."""

FLAT_DEVIATION: Final = 4.0
"""Standard deviation of an image's values, of 255, below which it shows nothing: a covered lens, a blank frame."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        paths: the image files, sorted.
        sha256: over the files' contents in that order, hexadecimal.
        origin_warning: what is known to be wrong with the set before its images are read, for people; None if nothing.
    """

    paths: tuple[Path, ...]
    sha256: str
    origin_warning: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def warning(self) -> str | None:
        """What is wrong with the set, for people; None if nothing. Reads all images.

        Raises:
            CalibrationError: a file is not an image; names it.
        """
        flat = [path for path, image in self._decoded() if image.std() < FLAT_DEVIATION]
        texts = [self.origin_warning] if self.origin_warning else []
        if 2 * len(flat) > len(self):
            texts.append(
                f"{len(flat)} of {len(self)} calibration images show nothing but one color, such as {flat[0]}: int8's "
                "ranges come out too small for real images. Replace them"
            )
        return ". ".join(texts) or None

    def letterboxed(self, input_height: int, input_width: int) -> Iterator[NDArray[np.uint8]]:
        """Each image as the network sees it: uint8 [input_height, input_width, 3] RGB.

        Raises:
            CalibrationError: a file is not an image; names it.
        """
        for _, image in self._decoded():
            out = np.empty((input_height, input_width, 3), np.uint8)
            letterbox(image, out)
            yield out

    def _decoded(self) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
        for path in self.paths:
            try:
                image = decode_image(path.read_bytes())
            except (ImageError, OSError) as error:
                raise CalibrationError(f"calibration image {path}: {error}; remove or replace it") from error
            yield path, image


def calibration_set(images: Sequence[Path], warning: str | None = None) -> CalibrationSet:
    """Take images for calibration.

    Args:
        images: files, or folders that are searched for images.
        warning: what is known to be wrong with them; None warns of too few.

    Raises:
        CalibrationError: nothing was found.
    """
    paths = find_images(images)
    if warning is None and len(paths) < ADVISED_IMAGES:
        warning = (
            f"{len(paths)} calibration images; {ADVISED_IMAGES} or more of what the camera will see are advised. int8 "
            "accuracy may suffer"
        )
    return CalibrationSet(paths, _hash(paths), warning)


def find_images(images: Sequence[Path]) -> tuple[Path, ...]:
    """Image files among files and folders, sorted; folders are searched as the client does it.

    Raises:
        CalibrationError: a path does not exist, or there is no image.
    """
    try:
        found = sources.find_images(images, suffixes=sources.IMAGE_SUFFIXES)
    except sources.SourceError as error:
        raise CalibrationError(f"{error}. Give images of what will be segmented with --images") from error
    return tuple(sorted(source.path for source in found))


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
