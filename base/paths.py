"""Paths on the command line: files of this machine, never addresses of storage."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

# One letter would be a drive of Windows. `Path` makes one slash of two.
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=:/)")


def address_problem(path: str | Path) -> str | None:
    """Why something given as a path is an address, such as ``s3://bucket/models``.

    Args:
        path: text, or a path made of it (``Path("s3://bucket")`` is ``s3:/bucket``).

    Returns:
        What came, what is allowed and what to do; None if it is a path.

    Example:
        >>> address_problem("models/s3") is None
        True
    """
    found = _SCHEME.match(str(path))
    if found is None or Path(path).exists():
        return None
    return (
        f"{path} is an address ({found.group()}), not a path: only files and folders of this machine are read and "
        "written. Copy it here, or mount it, and give the path"
    )


def local_path(text: str) -> Path:
    """A path, for ``argparse``; an address is refused before anything is created.

    Raises:
        argparse.ArgumentTypeError: it is an address.
    """
    problem = address_problem(text)
    if problem is not None:
        raise argparse.ArgumentTypeError(problem)
    return Path(text)
