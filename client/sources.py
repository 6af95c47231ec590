"""From the paths on a command line to the images they mean, each with a name of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES: Final = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})


class SourceError(Exception):
    """The paths given cannot be used as they are; the message says why."""


@dataclass(frozen=True)
class Source:
    """One image file.

    Attributes:
        path: where it lies.
        name: relative path, different from that of every other source: for overlays and JSON.
    """

    path: Path
    name: str


def find_images(paths: Sequence[Path], skip: Path | None = None) -> list[Source]:
    """List the images that paths mean.

    A file is taken whatever its suffix; a folder means the image files in it and below, by suffix, sorted. A file
    reached twice is taken once.

    Args:
        paths: files and folders.
        skip: a folder to leave out, such as the one that overlays are written to.

    Raises:
        SourceError: a path does not exist, or no image was found.
    """
    found: dict[Path, Source] = {}
    skipped = skip.resolve() if skip is not None else None
    for given in paths:
        if not given.exists():
            raise SourceError(f"{given}: no such file or folder")
        files = list(_below(given, skipped)) if given.is_dir() else [given]
        if not files:
            raise SourceError(f"{given}: no image in this folder; images are {', '.join(sorted(IMAGE_SUFFIXES))}")
        for path in files:
            # A folder's own name stays in front, so that two folders do not meet; '.' and '..' have none.
            name = path.relative_to(given if given.name in ("", "..") else given.parent)
            found.setdefault(path.resolve(), Source(path, name.as_posix()))
    return _told_apart(found)


def _below(folder: Path, skipped: Path | None) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if skipped is not None:
            folders[:] = [name for name in folders if (Path(parent) / name).resolve() != skipped]
        yield from (Path(parent) / name for name in sorted(files) if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _told_apart(found: dict[Path, Source]) -> list[Source]:
    names = {source.name for source in found.values()}
    if len(names) == len(found):
        return list(found.values())
    common = Path(os.path.commonpath([path.parent for path in found]))
    return [Source(source.path, path.relative_to(common).as_posix()) for path, source in found.items()]
