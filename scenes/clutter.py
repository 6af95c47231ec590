"""Things beside and on top of the cards: papers, books, telephones, pens, coins, fingers. None is a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import cv2
import numpy as np

from scenes import words
from scenes.noise import RGB, smooth_noise, tint
from scenes.surface import FlatObject, Pixels

Maker = Callable[[np.random.Generator], FlatObject]


def thing_on_table(rng: np.random.Generator) -> FlatObject:
    """Something that may lie beside or under cards."""
    return _any_of(rng, _ON_TABLE)


def thing_on_top(rng: np.random.Generator) -> FlatObject:
    """Something small that may lie on cards and hide part of them."""
    return _any_of(rng, _ON_TOP)


def _any_of(rng: np.random.Generator, shares: Mapping[Maker, float]) -> FlatObject:
    return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))](rng)


_TEXELS_PER_MM: Final = 3


def _blank(width_mm: float, height_mm: float, color: RGB) -> Pixels:
    shape = (max(4, round(height_mm * _TEXELS_PER_MM)), max(4, round(width_mm * _TEXELS_PER_MM)), 3)
    return np.full(shape, np.clip(color, 0, 255), np.uint8)


def _color(rng: np.random.Generator, low: float, high: float) -> RGB:
    red, green, blue = rng.uniform(low, high, 3).tolist()
    return red, green, blue


def _lines(picture: Pixels, rng: np.random.Generator, height_mm: float, margin_mm: float) -> None:
    """Fill a page with words down to a random line."""
    step = round(height_mm * 1.9 * _TEXELS_PER_MM)
    margin = round(margin_mm * _TEXELS_PER_MM)
    ink = tuple(int(value) for value in rng.integers(10, 90, 3))
    scale = height_mm * _TEXELS_PER_MM / 22  # Hershey Simplex is 22 px high at scale 1
    for y in range(margin + step, round(picture.shape[0] * rng.uniform(0.5, 1.0)) - margin, step):
        text = " ".join(words.word(rng, 2).lower() for _ in range(max(1, int(picture.shape[1] / (scale * 120)))))
        if rng.random() < 0.85:
            cv2.putText(picture, text, (margin, y), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    picture[:, picture.shape[1] - margin :] = picture[0, -1]


def _paper(rng: np.random.Generator) -> FlatObject:
    white = rng.uniform(205, 252)
    width, height = (148.0, 210.0) if rng.random() < 0.6 else (210.0, 297.0)  # ISO 216, A5 and A4
    picture = _blank(width, height, (white, white, white * rng.uniform(0.9, 1.0)))
    _lines(picture, rng, rng.uniform(3.0, 6.0), 12)
    return FlatObject(picture, width, height, 0.4, "paper")


def _receipt(rng: np.random.Generator) -> FlatObject:
    width, height = 58.0, float(rng.uniform(110, 190))
    picture = _blank(width, height, (238, 238, 234))
    _lines(picture, rng, 3.2, 4)
    return FlatObject(picture, width, height, 0.3, "receipt")


def _book(rng: np.random.Generator) -> FlatObject:
    """A closed book or notebook; large ones only, as small ones of this shape are passports."""
    width, height = float(rng.uniform(120, 160)), float(rng.uniform(180, 230))
    picture = _blank(width, height, _color(rng, 20, 200))
    rows, columns = picture.shape[:2]
    title, gold = words.word(rng, 2), (235, 220, 170)
    cv2.putText(picture, title, (columns // 8, rows // 4), cv2.FONT_HERSHEY_TRIPLEX, 1.8, gold, 3, cv2.LINE_AA)
    picture[:, : columns // 14] = (picture[:, : columns // 14] * 0.6).astype(np.uint8)
    return FlatObject(picture, width, height, 2.5, "book")


def _box(rng: np.random.Generator) -> FlatObject:
    """Cardboard with tape across."""
    side, other = float(rng.uniform(110, 190)), float(rng.uniform(110, 190))
    rows, columns = round(other * 2), round(side * 2)
    field = smooth_noise(rng, rows, columns, (40, 3), 3) * 0.5 + 0.5
    picture = tint(field, (150, 112, 74), (196, 158, 112))
    tape = slice(rows // 2 - rows // 14, rows // 2 + rows // 14)
    picture[tape] = (picture[tape] * 0.5 + np.array([104, 96, 80])).astype(np.uint8)
    return FlatObject(picture, side, other, 0.8, "box")


def _telephone(rng: np.random.Generator) -> FlatObject:
    width, height = 72.0, float(rng.uniform(142, 160))
    picture = _blank(width, height, (18, 18, 22))
    rows, columns = picture.shape[:2]
    if rng.random() < 0.5:
        field = smooth_noise(rng, rows - 18, columns - 18, (3, 2), 2) * 0.5 + 0.5
        picture[9:-9, 9:-9] = tint(field, _color(rng, 0, 120), _color(rng, 90, 255))
    return FlatObject(picture, width, height, 9, "telephone")


def _rod(rng: np.random.Generator, length_mm: float, thick_mm: float, color: RGB) -> Pixels:
    """A lying cylinder: bright along its upper third, darker to the sides."""
    picture = _blank(length_mm, thick_mm, color).astype(np.float32)
    across = np.linspace(-1, 1, picture.shape[0], dtype=np.float32)
    shine = 0.62 + 0.5 * np.sqrt(np.clip(1 - (across + 0.25) ** 2, 0, 1))
    picture *= shine[:, None, None]
    picture[:, : int(picture.shape[1] * rng.uniform(0.02, 0.3))] *= 0.55
    return np.clip(picture, 0, 255).astype(np.uint8)


def _pen(rng: np.random.Generator) -> FlatObject:
    length, thick = float(rng.uniform(125, 150)), float(rng.uniform(6, 9.5))
    picture = _rod(rng, length, thick, _color(rng, 15, 240))
    return FlatObject(picture, length, thick, thick / 2 - 0.5, "pen")


def finger(rng: np.random.Generator, tone: float) -> FlatObject:
    """A finger, its nail at the right end; ``tone`` from 0.35, dark, to 1, light skin."""
    length, thick = float(rng.uniform(75, 100)), float(rng.uniform(16, 20))
    skin = np.array([238, 190, 160]) * tone
    picture = _rod(rng, length, thick, (float(skin[0]), float(skin[1]), float(skin[2]))).astype(np.float32)
    rows, columns = picture.shape[:2]
    picture *= 1 + 0.1 * smooth_noise(rng, rows, columns, (6, 18), 3)[..., None]
    soft = np.asarray(cv2.GaussianBlur(np.clip(picture, 0, 255).astype(np.uint8), (0, 0), 4), np.uint8)
    nail = tuple(float(value) for value in np.clip(skin * 1.08 + 12, 0, 255))
    cv2.ellipse(soft, (columns - rows // 2, rows // 2), (rows // 3, rows // 4), 0, 0, 360, nail, -1, cv2.LINE_AA)
    soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), 1.5), np.uint8)
    return FlatObject(soft, length, thick, thick / 2 - 0.2, "finger")


def _note(rng: np.random.Generator) -> FlatObject:
    """A square sticky note with nothing on it."""
    colors = ((250, 236, 120), (250, 170, 190), (160, 226, 170), (150, 206, 240))
    picture = _blank(50, 50, colors[int(rng.integers(len(colors)))])
    return FlatObject(picture, 50, 50, 0.4, "note")


def _disc(rng: np.random.Generator, diameter_mm: float, color: RGB) -> Pixels:
    picture = _blank(diameter_mm, diameter_mm, color)
    middle, radius = picture.shape[0] // 2, picture.shape[0] / 2
    bright, dark = (tuple(float(min(255.0, value * factor)) for value in color) for factor in (1.22, 0.7))
    cv2.circle(picture, (middle, middle), round(radius * 0.86), dark, max(1, round(radius * 0.05)), cv2.LINE_AA)
    cv2.circle(picture, (middle, middle), round(radius * rng.uniform(0.35, 0.6)), bright, -1, cv2.LINE_AA)
    return picture


def _coin(rng: np.random.Generator) -> FlatObject:
    diameter = float(rng.uniform(18, 27))
    colors = ((198, 168, 96), (182, 182, 186), (172, 112, 74))
    return FlatObject(_disc(rng, diameter, colors[int(rng.integers(3))]), diameter, diameter, diameter / 2, "coin")


def _cup(rng: np.random.Generator) -> FlatObject:
    """A cup of coffee or tea, from above."""
    diameter = float(rng.uniform(75, 95))
    white = rng.uniform(150, 240)
    picture = _blank(diameter, diameter, (white, white, white))
    middle, radius = picture.shape[0] // 2, picture.shape[0] / 2
    drink = tuple(float(value) for value in np.array([92, 54, 30]) * rng.uniform(0.4, 1.8))
    cv2.circle(picture, (middle, middle), round(radius * 0.84), drink, -1, cv2.LINE_AA)
    return FlatObject(picture, diameter, diameter, diameter / 2, "cup")


# Papers and notes are rare: the reference model takes about every second one for a card, and a test in which most
# mistakes are of one kind says little about the rest.
_ON_TABLE: Final[dict[Maker, float]] = {
    _paper: 0.08,
    _book: 0.14,
    _telephone: 0.12,
    _pen: 0.24,
    _note: 0.04,
    _coin: 0.14,
    _cup: 0.1,
    _receipt: 0.04,
    _box: 0.1,
}
_ON_TOP: Final[dict[Maker, float]] = {_pen: 0.6, _note: 0.08, _coin: 0.32}
