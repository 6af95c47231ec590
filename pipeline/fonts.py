"""Text that OpenCV's own font does not have, drawn by Pillow with a font of the machine."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FOLDERS: Final = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_SUFFIXES: Final = (".ttf", ".ttc", ".otf")
# Fonts of many scripts first; then whatever is there.
_FIRST: Final = ("NotoSans-Regular", "DejaVuSans", "NotoSansCJK-Regular", "wqy", "unifont", "Noto", "FreeSans")
_MOST_FONTS: Final = 400
_MISSING: Final = "\U0010fffe"  # no font has this character: it is drawn as whatever stands for missing ones
_PROBE_PX: Final = 24


def text_mask(text: str, height_px: int) -> NDArray[np.uint8] | None:
    """A line of text in any script, as how much ink each pixel gets.

    Args:
        text: printable characters.
        height_px: of the font.

    Returns:
        uint8 [height, width], 255 is full ink; None where no font of this machine has all of its characters, or where
        Pillow is missing.
    """
    try:
        from PIL import ImageFont
    except ImportError:
        return None
    path = _font_for(frozenset(text) - {" "})
    if path is None:
        return None
    font = ImageFont.truetype(path, height_px)
    mask: Any = font.getmask(text, mode="L")
    width, height = mask.size
    return np.asarray(mask, np.uint8).reshape(height, width) if width and height else None


@functools.lru_cache(maxsize=256)
def _font_for(letters: frozenset[str]) -> str | None:
    from PIL import ImageFont

    for path in _fonts():
        try:
            font = ImageFont.truetype(path, _PROBE_PX)
            missing = bytes(font.getmask(_MISSING))
            if all(bytes(font.getmask(letter)) != missing for letter in letters):
                return path
        except (OSError, ValueError):  # a file that is no such font
            continue
    return None


@functools.cache
def _fonts() -> tuple[str, ...]:
    def rank(path: Path) -> tuple[int, str]:
        starts = (place for place, name in enumerate(_FIRST) if path.name.startswith(name))
        return next(starts, len(_FIRST)), str(path)

    return tuple(str(path) for path in sorted(_font_files(), key=rank)[:_MOST_FONTS])


def _font_files() -> Iterator[Path]:
    for folder in _FOLDERS:
        yield from (path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in _SUFFIXES)
