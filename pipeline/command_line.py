"""What every ``python -m`` of this project does before anything else."""

from __future__ import annotations

import io
import sys


def prepare() -> None:
    """Make every file name and message printable: what the terminal's encoding lacks appears as ``\\udcff``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
