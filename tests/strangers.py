"""Files of another user, for tests that do not run as root."""

from __future__ import annotations

from pathlib import Path

from base import files


def belongs_to_another(monkeypatch, path: Path) -> Path:
    """Have the project see a path as another user's; returns the path."""
    theirs, is_mine = path.lstat(), files._is_mine
    place = (theirs.st_dev, theirs.st_ino)
    monkeypatch.setattr(files, "_is_mine", lambda status: (status.st_dev, status.st_ino) != place and is_mine(status))
    return path
