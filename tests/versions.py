"""Small versions in a repository, for tests of what happens to versions after they are built."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline import contract
from repository.manifest import MANIFEST_NAME, FileEntry, Manifest
from repository.shim import SHIM, SHIM_NAME
from repository.store import ModelRepository
from repository.versions import Promoted, VersionRef, promote, rollback

SIZES = {"images": [640, 640, 3], "candidates": [1000, 38], "prototypes": [32, 160, 160]}
SOURCE = {"name": "test", "file": "a.onnx", "sha256": "a" * 64, "class_names": ["cat", "dog"], "tensor_sizes": SIZES}
PASSED = {"passed": True, "gate": {"f1": 0.97}, "metrics": {"f1": 0.99}, "measured": "a test", "images": 3}
FAILED = {"passed": False, "gate": {"f1": 0.97}, "metrics": {"f1": 0.5}, "measured": "a test", "images": 3}
H100_PLAN = {
    "flavor": "tensorrt-10",
    "tensorrt": "10.13.0",
    "gpu": "NVIDIA H100",
    "compute_capability": "9.0",
    "version_compatible": False,
    "hardware_compatible": False,
}


def add_version(
    repository: ModelRepository,
    precision: str = "int8",
    *,
    plans: dict[str, dict[str, Any]] | None = None,
    verification: dict[str, Any] | None = PASSED,
    content: bytes = b"network",
    source: dict[str, Any] | None = None,
) -> Manifest:
    """Write a version of small files, of the tensorrt profile if plans are given; it is not promoted.

    Args:
        repository: where to write it.
        precision: fp32, fp16 or int8.
        plans: file name to what the plan was built with and for.
        verification: as in the manifest.
        content: of model.onnx, before the version's number.
        source: entries of the manifest's source that differ from those of one export with two classes.
    """
    with repository.locked(), repository.staging(precision) as staged:
        version = repository.next_version(precision)
        (staged / "model.onnx").write_bytes(content + str(version).encode())
        (staged / SHIM_NAME).write_text(SHIM)
        for name in plans or {}:
            (staged / name).write_bytes(f"plan {name}".encode())
        files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
        manifest = Manifest(
            tag=f"test-{precision}-ort1-cpu-{files['model.onnx'].sha256[:8]}",
            model=contract.network_model(precision),
            version=version,
            precision=precision,
            profile="tensorrt" if plans is not None else "cpu",
            created_utc="2026-01-01T00:00:00+00:00",
            build_key=f"key{version}",
            source={**SOURCE, **(source or {})},
            toolchain={},
            settings={},
            files=files,
            plans=plans or {},
            verification=verification,
        )
        (staged / MANIFEST_NAME).write_text(manifest.to_json())
        repository.publish(precision, staged, version)
    return manifest


def copy_version(repository: ModelRepository, precision: str, version: int, files: dict[str, str]) -> Manifest:
    """Write a version that is another one with some files changed, and a manifest that fits them."""
    with repository.locked(), repository.staging(precision) as staged:
        source = repository.model_folder(precision) / str(version)
        manifest = Manifest.read(source)
        for name in manifest.files:
            shutil.copyfile(source / name, staged / name)
        for name, text in files.items():
            (staged / name).write_text(text)
        entries = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
        number = repository.next_version(precision)
        changed = dataclasses.replace(manifest, version=number, build_key=f"copy{number}", files=entries)
        (staged / MANIFEST_NAME).write_text(changed.to_json())
        repository.publish(precision, staged, number)
    return changed


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a version, which is read-only."""
    path.chmod(0o644)
    path.write_bytes(content)


def promote_one(
    repository: ModelRepository, precision: str, version: int, profile: str | None = None, **options: Any
) -> Promoted:
    """Serve one version; see :func:`repository.versions.promote`."""
    return promote(repository, [VersionRef(precision, version)], profile, **options)[0]


def rollback_one(repository: ModelRepository, precision: str, profile: str | None = None, **options: Any) -> Promoted:
    """Serve the version of one model that was served before."""
    return rollback(repository, [precision], profile, **options)[0]
