"""Which images a build calibrates and verifies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.cache import cache_dir
from base.progress import Steps
from builder.calibration import CalibrationSet, calibration_set, find_images
from builder.errors import CalibrationError
from builder.settings import BuildSettings
from builder.verification import VerificationSet
from scenes import CardSource, write_dataset
from scenes.reference import Reference


@dataclass(frozen=True)
class Datasets:
    """The images of a build.

    Attributes:
        calibration: for int8; None if int8 is not built.
        verification: for the gates; no image of the calibration is among them.
    """

    calibration: CalibrationSet | None
    verification: VerificationSet


def resolve_datasets(settings: BuildSettings, reference: Reference | None, steps: Steps) -> Datasets:
    """Find, or generate, the images of a build.

    Own images: those of ``calibration.images`` and ``verification.images``; where only the former are given, every so
    many of them are held back for verification, and all of them serve it where nothing is calibrated. For the reference
    model, scenes are generated where no images are given.

    Args:
        settings: the build's.
        reference: the reference model, if that is what is built.
        steps: where progress is shown.

    Raises:
        CalibrationError: images are needed and none are given, or a path does not exist.
        SceneError: scenes cannot be generated.
    """
    for_calibration, for_verification = settings.calibration.images, settings.verification.images
    needs_calibration = "int8" in settings.precisions
    if reference is not None and not (for_calibration or for_verification):
        return _scenes(settings, reference, steps, needs_calibration)
    if not for_calibration and (needs_calibration or not for_verification):
        raise CalibrationError(
            "int8 is calibrated, and every precision verified, on images of what the model will see: give a folder "
            "with --images. 500 or more are advised"
        )
    if for_verification:
        calibration = calibration_set(for_calibration) if needs_calibration else None
        used = calibration.paths if calibration else ()
        verification = VerificationSet.of(find_images(for_verification), settings.verification.annotations, used)
        return Datasets(calibration, verification)
    images = find_images(for_calibration)
    if not needs_calibration:
        return Datasets(None, VerificationSet.of(images, settings.verification.annotations))
    kept, held_back = _hold_back(images, settings.verification.hold_back)
    verification = VerificationSet.of(held_back, settings.verification.annotations, kept)
    return Datasets(calibration_set(kept), verification)


def _scenes(settings: BuildSettings, reference: Reference, steps: Steps, needs_calibration: bool) -> Datasets:
    cards = CardSource.from_photographs(reference.photographs)
    folder = cache_dir() / "scenes"
    verification = write_dataset(
        folder / f"{settings.verification.scenes}",
        "verification",
        settings.verification.scenes,
        cards=cards,
        steps=steps,
    )
    paths = find_images([verification.images])
    annotations = settings.verification.annotations or verification.annotations
    if not needs_calibration:
        return Datasets(None, VerificationSet.of(paths, annotations))
    calibration = write_dataset(
        folder / f"{settings.calibration.scenes}", "calibration", settings.calibration.scenes, cards=cards, steps=steps
    )
    warning = (
        f"int8 is calibrated on {calibration.count} generated scenes of the reference model's cards: enough to try it, "
        "not for production. Give images of your own with --images"
    )
    chosen = calibration_set([calibration.images], warning)
    return Datasets(chosen, VerificationSet.of(paths, annotations, chosen.paths))


def _hold_back(items: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Every so many items apart from the rest, spread evenly."""
    every = max(2, round(1 / share))
    if len(items) < 2:
        raise CalibrationError("one image is not enough to calibrate and to verify on; give more with --images")
    held_back = [item for index, item in enumerate(items) if index % every == every - 1] or [items[-1]]
    return [item for item in items if item not in held_back], held_back
