"""Building and promoting on a full disk and on a read-only one; ``faults_files`` runs it in a mount namespace.

``unshare --mount python -m tests.chaos.faults_disk full REPOSITORY ONNX IMAGES MOUNTPOINT``
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from builder.__main__ import main as builder
from repository.integrity import verify
from repository.promotions import read_promotions
from repository.store import ModelRepository

PRECISION: Final = "fp32"
_DISK: Final = "48m"
_PAGE: Final = 4096
_SPARE_PAGES: Final = (0, 1, 2, 3, 16)
"""Room left on the full disk: any of the files that are written may be the one that fails."""


def try_build(repository: Path, onnx: Path, images: Path) -> dict[str, Any]:
    """Build a version; returns the outcome."""
    options = ["--onnx", str(onnx), "--verify-images", str(images), "--precisions", PRECISION]
    return _try(repository, ["build", "--profile", "cpu", *options, "--repository", str(repository)])


def try_promote(repository: Path, version: int) -> dict[str, Any]:
    """Promote a version; returns the outcome."""
    return _try(repository, ["promote", f"network_{PRECISION}/{version}", "--repository", str(repository)])


def full(repository: Path, onnx: Path, images: Path) -> list[dict[str, Any]]:
    """On a disk with more and more room left, then with room enough."""
    filler = repository.parent / "filler"
    tried = []
    for pages in _SPARE_PAGES:
        _fill(filler, pages)
        tried += [{"pages": pages, **try_build(repository, onnx, images)}]
        _fill(filler, pages)  # what the build left takes room too
        tried += [{"pages": pages, **try_promote(repository, 2)}]
        filler.unlink()
        try_promote(repository, 1)
    return [*tried, *_with_room(repository, onnx, images)]


def read_only(repository: Path, onnx: Path, images: Path) -> list[dict[str, Any]]:
    """On a read-only disk, then on one that can be written to."""
    _remount(repository.parent, "ro")
    tried = [try_build(repository, onnx, images), try_promote(repository, 2)]
    _remount(repository.parent, "rw")
    return [*tried, *_with_room(repository, onnx, images)]


def _with_room(repository: Path, onnx: Path, images: Path) -> list[dict[str, Any]]:
    """The same on a disk that is neither."""
    attempts = (try_build(repository, onnx, images), try_promote(repository, 2))
    return [{"fixed": True, **attempt} for attempt in attempts]


def _try(path: Path, arguments: list[str]) -> dict[str, Any]:
    repository = ModelRepository(path)
    config = repository.config_path(PRECISION, "cpu")
    before = (repository.versions(PRECISION), config.read_text(), len(read_promotions(config.parent.parent)))
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status: int | str = builder(arguments)
        except Exception as error:  # what the command would end with: a traceback
            status = f"{type(error).__name__}: {error}"
    after = (repository.versions(PRECISION), config.read_text(), len(read_promotions(config.parent.parent)))
    return {
        "command": arguments[0],
        "status": status,
        "error": errors.getvalue().strip(),
        "changed": [
            name for name, old, new in zip(("versions", "config", "log"), before, after, strict=True) if old != new
        ],
        "faults": [str(fault) for fault in verify(repository).faults],
        "promoted": repository.promoted(PRECISION, "cpu"),
        "leftovers": len(repository.leftovers(PRECISION)),
    }


def _fill(filler: Path, pages: int) -> None:
    """Leave so many pages free."""
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(_PAGE))
    size = filler.stat().st_size
    with filler.open("r+b") as stream:
        stream.truncate(max(0, size - pages * _PAGE))


def _remount(disk: Path, how: str) -> None:
    """Change the mount, not the file system: that would ask for its owner's id, which has none in the namespace."""
    subprocess.run(["mount", "-o", f"remount,bind,{how}", str(disk)], check=True)


def main(arguments: Sequence[str]) -> int:
    """Mount a small disk, try, and print the outcomes as JSON."""
    mode, source, onnx, images, disk = arguments[0], *map(Path, arguments[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)], check=True)
    repository = Path(shutil.copytree(source, disk / "repository"))
    print(json.dumps({"full": full, "read-only": read_only}[mode](repository, onnx, images)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
