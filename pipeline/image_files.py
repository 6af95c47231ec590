"""From the paths on a command line to the images they mean, each with a unique name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
"""Suffixes of what the server reads."""

CONVERTED_SUFFIXES: Final = frozenset({".heic", ".heif", ".hif", ".avif"})
"""Suffixes of what the client converts to JPEG."""

VIDEO_SUFFIXES: Final = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".flv", ".f4v", ".wmv", ".asf"),
        *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv", ".mjpeg", ".mjpg"),
    }
)


class SourceError(Exception):
    """The given paths cannot be used; the message says why."""


@dataclass(frozen=True)
class Source:
    """One image file.

    Attributes:
        path: of the file.
        name: relative path, unique among the sources: for overlays and JSON.
    """

    path: Path
    name: str


def find_images(
    paths: Sequence[Path],
    skip: Path | None = None,
    left_out: Counter[str] | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES | CONVERTED_SUFFIXES,
) -> list[Source]:
    """List the images that paths mean.

    A file counts with any suffix. A folder means the image files in it and below, by suffix, sorted. Links to
    folders are followed; each folder and each file counts once. macOS's ``._photo.jpg`` is no image.

    Args:
        paths: files and folders.
        skip: a folder to leave out, such as the one for overlays.
        left_out: counts the other files in the folders, by kind, such as ``{".txt": 3, "macOS ._ file": 1}``.
        suffixes: of images, in lower case.

    Raises:
        SourceError: a path does not exist, or a folder holds no image.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.jpg").write_bytes(b""), Path(folder, "notes.txt").write_bytes(b"")
        ...     [Path(source.name).name for source in find_images([Path(folder)])]
        ['a.jpg']
    """
    found: dict[Path, Source] = {}
    others: Counter[str] = Counter() if left_out is None else left_out
    seen = {skip.resolve()} if skip is not None else set()
    for given in paths:
        if not given.exists():
            raise SourceError(f"{given}: no such file or folder")
        files = list(_below(given, set(seen), others, suffixes)) if given.is_dir() else [given]
        if not files:
            there = f" (there are: {listed(others)})" if others else ""
            raise SourceError(f"{given}: no image in this folder{there}; images are {', '.join(sorted(suffixes))}")
        for path in files:
            # A folder's name stays in front, to keep two folders apart; '.' and '..' have none.
            name = path.relative_to(given if given.name in ("", "..") else given.parent)
            found.setdefault(path.resolve(), Source(path, name.as_posix()))
    return _with_unique_names(found)


def listed(left_out: Counter[str]) -> str:
    """What was left out, as text.

    Example:
        >>> listed(Counter({".txt": 3, "macOS ._ file": 1}))
        '3 .txt, 1 macOS ._ file'
    """
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


def _below(folder: Path, seen: set[Path], others: Counter[str], suffixes: Collection[str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        others["folder that cannot be read"] += 1

    seen.add(folder.resolve())
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        unseen = []
        for name in sorted(folders, key=lambda name: ((Path(parent) / name).is_symlink(), name)):
            place = (Path(parent) / name).resolve()
            if place not in seen:
                seen.add(place)
                unseen.append(name)
        folders[:] = sorted(unseen)
        for name in sorted(files):
            path = Path(parent) / name
            if kind := _kind_left_out(path, suffixes):
                others[kind] += 1
            else:
                yield path


def _kind_left_out(path: Path, suffixes: Collection[str]) -> str:
    """Why a file in a folder is no image, as a kind; empty if it is one."""
    suffix = path.suffix.lower()
    if path.name.startswith("._"):
        return "macOS ._ file"
    if suffix not in suffixes:
        return suffix or "without suffix"
    if not path.exists():
        return "broken link"
    return "" if path.is_file() else "no regular file"


def _with_unique_names(found: dict[Path, Source]) -> list[Source]:
    names = {source.name for source in found.values()}
    if len(names) == len(found):
        return list(found.values())
    common = Path(os.path.commonpath([path.parent for path in found]))
    return [Source(source.path, path.relative_to(common).as_posix()) for path, source in found.items()]
