"""The API key that the HTTP front may ask its callers for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

KEY_HEADER: Final = "X-API-Key"
KEY_VARIABLE: Final = "SEGMENTATION_API_KEY"
"""Environment variable that holds a caller's key."""

_LEAST_LETTERS: Final = 16
_MOST_BYTES: Final = 4096


def read_key(path: Path) -> str:
    """The API key in a file, without the space around it.

    Raises:
        ValueError: it is too short, or no plain text of one line.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return checked_key(file.read(_MOST_BYTES + 1).decode("ascii", "replace"), str(path))


def checked_key(text: str, source: str) -> str:
    """An API key, without the space around it.

    Args:
        text: that should be one.
        source: where it comes from, for the message.

    Raises:
        ValueError: it is too short, or no plain text of one line.

    Example:
        >>> checked_key(" 0123456789abcdef\\n", "key.txt")
        '0123456789abcdef'
    """
    key = text.strip()
    if not _LEAST_LETTERS <= len(key) < _MOST_BYTES or not key.isprintable() or not key.isascii() or " " in key:
        raise ValueError(
            f"{source}: an API key is one line of {_LEAST_LETTERS} or more letters, digits and signs without spaces; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key
