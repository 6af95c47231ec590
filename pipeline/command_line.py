"""What every ``python -m`` of this project does before anything else."""

from __future__ import annotations

import io
import sys


def prepare() -> None:
    """Let names of files and other people's text be printed whatever they hold, and whatever the locale is.

    Bytes that are no text, and letters that the terminal's encoding lacks, appear as ``\\udcff`` or ``\\u2713``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
