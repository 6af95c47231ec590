"""``manifest.json``: what a version is, what made it, and the hashes that prove it."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from base.files import sha256_of
from repository.errors import RepositoryError

MANIFEST_NAME: Final = "manifest.json"
FORMAT_VERSION: Final = 1

_LONGEST_INTEGER: Final = 20
"""Digits, and a sign: 64 bits have no more."""

_SHOWN_CLASSES: Final = 3
_SHOWN_HASH: Final = 8


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
    """What is known of one version.

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
        verification: results of the checks, and the gate, also in engines besides ONNX Runtime; None where none ran.
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

    @property
    def name(self) -> str:
        """Model and version, as commands take them: ``network_int8/2``."""
        return f"{self.model}/{self.version}"

    @property
    def source_hash(self) -> str:
        """Hash of the export; empty if unknown."""
        return str(self.source.get("sha256") or "")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the export; empty if unknown."""
        names = self.source.get("class_names")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    @property
    def source_text(self) -> str:
        """The export, for messages: ``best.onnx (3fa41c22…, 2 classes: cat, dog)``."""
        classes = f", {classes_text(self.class_names)}" if self.class_names else ""
        return f"{self.source.get('file', 'an export')} ({self.source_hash[:_SHOWN_HASH]}…{classes})"

    @property
    def gate_passed(self) -> bool:
        """Whether its accuracy gate passed."""
        return self.verification is not None and self.verification.get("passed") is True

    @property
    def gate_refusal(self) -> str | None:
        """Why its accuracy gate does not allow it to be served; None if it does.

        fp32 is what the others are compared with, so it needs no verification.
        """
        if self.gate_passed or (self.verification is None and self.precision == "fp32"):
            return None
        if self.verification is None:
            return "it was never verified against fp32"
        metrics, gate = self.verification.get("metrics") or {}, self.verification.get("gate") or {}
        values = ", ".join(f"{name} {_number(metrics.get(name))}, needed {_number(gate[name])}" for name in gate)
        return f"its gate did not pass ({values or 'the manifest does not say why'})"

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a version's manifest.

        Raises:
            RepositoryError: missing, broken, a link, of a newer format, or it names files outside of the folder.
        """
        path = folder / MANIFEST_NAME
        try:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise RepositoryError(f"{path}: not a regular file; build the version again")
            text = path.read_text(encoding="utf-8")
            values = json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded)
            if values["format_version"] > FORMAT_VERSION:
                raise RepositoryError(f"{path}: written by a newer builder (format {values['format_version']}); update")
            _check_kinds(values)
            for name in [*values["files"], *values.get("plans", {})]:
                if not _is_plain(name):
                    raise RepositoryError(f"{path}: names {name!a}; allowed: files of the version's own folder")
            values["files"] = {name: FileEntry(**entry) for name, entry in values["files"].items()}
            values["excluded_nodes"] = tuple(values["excluded_nodes"])
            values["attempts"] = tuple(values["attempts"])
            return cls(**values)
        except FileNotFoundError:
            raise RepositoryError(f"{path}: missing; the version was not written by this builder") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise RepositoryError(f"{path}: not a readable manifest ({error}); build the version again") from error


def _check_kinds(values: dict[str, Any]) -> None:
    """Refuse entries of another kind than the builder writes, as far as anything here reads them.

    Raises:
        ValueError: says which.
    """
    for name, value, hint in _entries(values):  # what holds others comes before them
        if type(value) not in _kinds(hint):
            raise ValueError(f"{name} is of the kind {type(value).__name__}")


def _entries(values: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and type hint of each entry."""
    hints = typing.get_type_hints(Manifest)
    yield from ((name, value, hints[name]) for name, value in values.items() if name in hints)
    for name, entry in values["files"].items():
        yield f"files.{name}", entry, dict
        yield f"files.{name}.sha256", entry["sha256"], str
        yield f"files.{name}.size_bytes", entry["size_bytes"], int
    for name, facts in values.get("plans", {}).items():
        yield f"plans.{name}", facts, dict
        yield from ((f"plans.{name}.{fact}", facts.get(fact), hint) for fact, hint in _PLAN_FACTS.items())
    for name in ("gate", "metrics", "engines"):
        yield f"verification.{name}", (values.get("verification") or {}).get(name), dict | None
    for name, record in ((values.get("verification") or {}).get("engines") or {}).items():
        yield f"verification.engines.{name}", record, dict
    yield "settings.plan", values["settings"].get("plan", {}), dict
    sizes = values["source"].get("tensor_sizes", {})
    yield "source.tensor_sizes", sizes, dict
    for name, size in sizes.items():
        yield f"source.tensor_sizes.{name}", size, list
        yield from ((f"source.tensor_sizes.{name}", side, int) for side in size)


_PLAN_FACTS: Final = {
    "flavor": str | None,
    "tensorrt": str | None,
    "compute_capability": str | None,
    "gpu": str | None,
    "batches": list | None,
}


def _kinds(hint: Any) -> set[type]:
    """What JSON has for a type hint."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = {typing.get_origin(option) or option for option in options}
    return {list if kind is tuple else kind for kind in plain}


def _bounded(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself, as this project's builder gives: no separators."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name) is not None


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"


def classes_text(names: Sequence[str]) -> str:
    """For messages: ``80 classes: person, bicycle, car, …``."""
    more = ", …" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names)} class{'' if len(names) == 1 else 'es'}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def other_classes(before: Sequence[str], now: Sequence[str]) -> str | None:
    """What differs between two lists of class names; None if a class's number means the same in both.

    Exports without names have ``class_0`` and so on, of which only the number counts; an empty list is unknown.

    Example:
        >>> other_classes(["cat", "dog"], ["cat", "cow"])
        "class 1 was 'dog' and is 'cow'"
    """
    if not before or not now:
        return None
    if len(before) != len(now):
        return f"{len(before)} class(es) before, {len(now)} now"
    if not is_named(before) or not is_named(now):
        return None
    pairs = enumerate(zip(before, now, strict=True))
    return next((f"class {index} was {old!r} and is {new!r}" for index, (old, new) in pairs if old != new), None)


def is_named(names: Sequence[str]) -> bool:
    """Whether class names are an export's, not the ``class_0`` and so on of one that has none."""
    return list(names) != [f"class_{index}" for index in range(len(names))]


def toolchain(*packages: str) -> dict[str, str]:
    """Versions of Python, the machine's architecture and the packages named."""
    versions = {package: version_of(package) for package in packages}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


@functools.cache
def version_of(package: str) -> str:
    """Version of an installed package, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
