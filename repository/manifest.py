"""``manifest.json``: what a version is, what made it, and the hashes that prove it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from repository.errors import RepositoryError

MANIFEST_NAME: Final = "manifest.json"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of a version.

    Attributes:
        sha256: of its bytes, hexadecimal.
        size_bytes: its length.
    """

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Hash a file."""
        return cls(sha256_of(path), path.stat().st_size)


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of one version.

    Attributes:
        tag: ``<model>-<precision>-<runtime><version>-<device>-<hash8>``.
        model: the Triton model, such as ``network_int8``.
        version: the number of its folder.
        precision: fp32, fp16 or int8.
        profile: the profile it was built for.
        created_utc: ISO 8601.
        build_key: hash over everything that determines the result; equal keys are the same build.
        source: the export: name, hash, opset, input size, class names.
        toolchain: versions of what made it.
        settings: the settings in force.
        calibration: images, hash and method; None where nothing was calibrated.
        excluded_nodes: nodes kept in higher precision, by name.
        layers: counts of layers per precision.
        files: every file of the version but this one.
        plans: file name of each TensorRT plan to what it was built with and for.
        verification: results of the checks, and the gate; None where none ran.
        attempts: builds that failed before this one, and what was changed.
        durations_s: seconds per step.
        format_version: of this file.
    """

    tag: str
    model: str
    version: int
    precision: str
    profile: str
    created_utc: str
    build_key: str
    source: dict[str, Any]
    toolchain: dict[str, str]
    settings: dict[str, Any]
    files: dict[str, FileEntry]
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    excluded_nodes: tuple[str, ...] = ()
    layers: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    attempts: tuple[dict[str, Any], ...] = ()
    durations_s: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a version's manifest.

        Raises:
            RepositoryError: missing, broken, or of a newer format.
        """
        path = folder / MANIFEST_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] > FORMAT_VERSION:
                raise RepositoryError(f"{path}: written by a newer builder (format {values['format_version']}); update")
            values["files"] = {name: FileEntry(**entry) for name, entry in values["files"].items()}
            values["excluded_nodes"] = tuple(values["excluded_nodes"])
            values["attempts"] = tuple(values["attempts"])
            return cls(**values)
        except FileNotFoundError:
            raise RepositoryError(f"{path}: missing; the version was not written by this builder") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise RepositoryError(f"{path}: not a readable manifest ({error}); build the version again") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def toolchain(*packages: str) -> dict[str, str]:
    """Versions of Python, the machine's architecture and the packages named."""
    versions = {package: _version(package) for package in packages}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
