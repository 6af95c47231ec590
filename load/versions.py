"""The versions that were measured: tag and verified accuracy, from their manifests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import contract
from repository.errors import RepositoryError
from repository.manifest import Manifest


@dataclass(frozen=True)
class MeasuredVersion:
    """One served version."""

    precision: str  # fp32, fp16 or int8
    version: str  # number of its folder, as the server names it
    tag: str | None = None  # its tag; None if its manifest is not known
    size_bytes: int | None = None  # of the network's file; None if not known
    passed: bool | None = None  # whether it passed its gate; None if it was not verified, or that is not known
    mask_iou: float | None = None  # mean mask IoU of its detections with fp32's, in [0, 1]
    f1: float | None = None  # agreement of its detections with fp32's, in [0, 1]
    map50_95: float | None = None  # mask mAP against annotations, in [0, 1]
    # What is known of the accuracy, in words
    note: str = "not known: no manifest; name the server's model repository with --repository"


def describe_version(precision: str, version: str, repository: Path | None) -> MeasuredVersion:
    """Read a version's manifest out of the server's model repository, if that is available."""
    if repository is None:
        return MeasuredVersion(precision, version)
    try:
        manifest = Manifest.read(repository / contract.network_model(precision) / version)
    except RepositoryError as error:
        return MeasuredVersion(precision, version, note=f"not known: {error}")
    largest = max((entry.size_bytes for entry in manifest.files.values()), default=None)
    verification = manifest.verification
    if not verification:
        return MeasuredVersion(precision, version, manifest.tag, largest, note="not verified")
    metrics = verification.get("metrics") or {}
    passed = bool(verification.get("passed"))
    images = verification.get("images")
    return MeasuredVersion(
        precision,
        version,
        manifest.tag,
        largest,
        passed,
        metrics.get("mask_iou"),
        metrics.get("f1"),
        metrics.get("map50_95"),
        f"gate {'passed' if passed else 'NOT passed'} on {images} images",
    )
