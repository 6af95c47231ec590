"""The images of a build: for calibration and for verification, never the same ones."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from base.cache import cache_dir
from base.progress import Steps
from builder.errors import CalibrationError
from builder.settings import BuildSettings
from pipeline import image_files
from pipeline.errors import ImageError
from pipeline.images import decode_image
from pipeline.letterbox import Geometry, letterbox
from scenes import CardSource, SceneDataset, write_dataset
from scenes.reference import Reference

ADVISED_IMAGES: Final = 500
"""The least that NVIDIA's Model Optimizer advises for convolutional networks."""

FLAT_DEVIATION: Final = 4.0
"""Standard deviation of an image's values, of 255, below which it shows nothing: a covered lens, a blank frame."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        paths: the image files, sorted.
        sha256: over the files' contents in that order, hexadecimal.
        origin_warning: what is wrong with the set, known before its images are read; None if nothing.
    """

    paths: tuple[Path, ...]
    sha256: str
    origin_warning: str | None = None

    @classmethod
    def of(cls, images: Sequence[Path], warning: str | None = None) -> CalibrationSet:
        """Take images.

        Args:
            images: files, or folders that are searched for images.
            warning: what is known to be wrong with them; None warns of too few.

        Raises:
            CalibrationError: there is no image.
        """
        paths = find_images(images)
        if warning is None and len(paths) < ADVISED_IMAGES:
            warning = (
                f"{len(paths)} calibration images; {ADVISED_IMAGES} or more of what the camera will see are advised. "
                "int8 accuracy may suffer"
            )
        return cls(paths, _sha256(map(_digest, paths)), warning)

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

    def facts(self, method: str) -> dict[str, Any]:
        """For the manifest."""
        return {"method": method, "images": len(self), "sha256": self.sha256, "warning": self.warning}

    def letterboxed(self, input_height: int, input_width: int, *, stretch: bool = False) -> Iterator[NDArray[np.uint8]]:
        """Each image as the network sees it, letterboxed or stretched: uint8 [input_height, input_width, 3] RGB.

        Raises:
            CalibrationError: a file is not an image; names it.
        """
        for _, image in self._decoded():
            out = np.empty((input_height, input_width, 3), np.uint8)
            letterbox(
                image, out, Geometry.fit(image.shape[0], image.shape[1], input_height, input_width, stretch=stretch)
            )
            yield out

    def _decoded(self) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
        for path in self.paths:
            try:
                image = decode_image(path.read_bytes())
            except (ImageError, OSError) as error:
                raise CalibrationError(f"calibration image {path}: {error}; remove or replace it") from error
            yield path, image


@dataclass(frozen=True)
class VerificationSet:
    """Images to verify on.

    Attributes:
        paths: the image files, sorted.
        sha256: over the files' contents in that order, hexadecimal.
        annotations: COCO instances file of these images; None if there is none.
    """

    paths: tuple[Path, ...]
    sha256: str
    annotations: Path | None = None

    @classmethod
    def of(
        cls, paths: Sequence[Path], annotations: Path | None = None, calibration: Sequence[Path] = ()
    ) -> VerificationSet:
        """Take images, without those whose content is also used for calibration.

        Raises:
            CalibrationError: none is left.
        """
        used = set(map(_digest, calibration))
        kept = {path: digest for path in sorted(paths) if (digest := _digest(path)) not in used}
        if not kept:
            raise CalibrationError(
                "no image is left to verify on: all are used for calibration; give others with --verify-images"
            )
        return cls(tuple(kept), _sha256(kept.values()), annotations)


@dataclass(frozen=True)
class Datasets:
    """The images of a build.

    Attributes:
        calibration: for int8; None if int8 is not built.
        verification: for the gates; no image of the calibration is among them.
    """

    calibration: CalibrationSet | None
    verification: VerificationSet


def find_images(images: Sequence[Path]) -> tuple[Path, ...]:
    """Image files among files and folders, sorted; folders are searched as the client does it.

    Raises:
        CalibrationError: a path does not exist, or there is no image.
    """
    try:
        found = image_files.find_images(images, suffixes=image_files.IMAGE_SUFFIXES)
    except image_files.SourceError as error:
        raise CalibrationError(f"{error}. Give images of what will be segmented with --images") from error
    return tuple(sorted(source.path for source in found))


def resolve_datasets(settings: BuildSettings, reference: Reference | None, steps: Steps) -> Datasets:
    """Find, or generate, the images of a build.

    With only ``calibration.images`` given, every n-th of them is held back for verification; if nothing is calibrated,
    all of them serve it. Without any images, scenes are generated for the reference model.

    Args:
        settings: the build's.
        reference: the reference model, if that is what is built.
        steps: where progress is shown.

    Raises:
        CalibrationError: images are needed and none are given, or a path does not exist.
        SceneError: scenes cannot be generated.
    """
    for_calibration, for_verification = settings.calibration.images, settings.verification.images
    annotations, calibrates = settings.verification.annotations, "int8" in settings.precisions
    if reference is not None and not (for_calibration or for_verification):
        return _scenes(settings, reference, steps, calibrates)
    if not for_calibration and (calibrates or not for_verification):
        raise CalibrationError(
            "int8 is calibrated, and every precision verified, on images of what the model will see: give a folder "
            f"with --images. {ADVISED_IMAGES} or more are advised"
        )
    if for_verification:
        calibration = CalibrationSet.of(for_calibration) if calibrates else None
        used = calibration.paths if calibration else ()
        return Datasets(calibration, VerificationSet.of(find_images(for_verification), annotations, used))
    images = find_images(for_calibration)
    if not calibrates:
        return Datasets(None, VerificationSet.of(images, annotations))
    kept, held_back = _hold_back(images, settings.verification.hold_back)
    return Datasets(CalibrationSet.of(kept), VerificationSet.of(held_back, annotations, kept))


def _scenes(settings: BuildSettings, reference: Reference, steps: Steps, calibrates: bool) -> Datasets:
    cards = CardSource.from_photographs(reference.photographs)

    def generate(split: str, count: int) -> SceneDataset:
        return write_dataset(cache_dir() / "scenes" / f"{count}", split, count, cards=cards, steps=steps)

    verification = generate("verification", settings.verification.scenes)
    paths = find_images([verification.images])
    annotations = settings.verification.annotations or verification.annotations
    if not calibrates:
        return Datasets(None, VerificationSet.of(paths, annotations))
    calibration = generate("calibration", settings.calibration.scenes)
    warning = (
        f"int8 is calibrated on {calibration.count} generated scenes of the reference model's cards: enough to try it, "
        "not for production. Give your images with --images"
    )
    chosen = CalibrationSet.of([calibration.images], warning)
    return Datasets(chosen, VerificationSet.of(paths, annotations, chosen.paths))


def _hold_back(items: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Split every n-th item off, spread evenly."""
    every = max(2, round(1 / share))
    if len(items) < 2:
        raise CalibrationError("one image is not enough to calibrate and to verify on; give more with --images")
    held_back = [item for index, item in enumerate(items) if index % every == every - 1] or [items[-1]]
    return [item for item in items if item not in held_back], held_back


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _sha256(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
