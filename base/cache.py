"""Where fetched and unpacked files are kept: outside what the repository tracks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "TRITON_SEGMENTATION_CACHE"


def cache_dir() -> Path:
    """The cache folder; made if it is missing.

    ``$TRITON_SEGMENTATION_CACHE`` if set, ``.cache`` of the checkout that this package runs from, else
    ``~/.cache/triton-instance-segmentation``.
    """
    checkout = Path(__file__).resolve().parent.parent
    if named := os.environ.get(CACHE_VARIABLE):
        folder = Path(named).absolute()
    elif (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        folder = checkout / ".cache"
    else:
        folder = Path.home() / ".cache" / "triton-instance-segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
