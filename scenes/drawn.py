"""Identity cards drawn by code: invented states, invented people, SPECIMEN across each."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scenes import words
from scenes.noise import gradient, smooth_noise, tint
from scenes.surface import CORNER_RADIUS_MM, LONG_SIDE_MM, SHORT_SIDE_MM, TEXELS_PER_MM, FlatObject, Pixels

Color = tuple[int, int, int]

_WIDTH: Final = round(LONG_SIDE_MM * TEXELS_PER_MM)
_HEIGHT: Final = round(SHORT_SIDE_MM * TEXELS_PER_MM)
_DESIGN_STREAM: Final = 0xCA4D
"""Keeps the random numbers of designs apart from those of scenes."""
_KINDS: Final = ("IDENTITY CARD", "DRIVER LICENSE", "RESIDENCE PERMIT", "CITIZEN CARD", "DRIVING PERMIT")
_SKINS: Final = ((241, 205, 178), (224, 178, 142), (198, 145, 107), (150, 101, 70), (104, 68, 48))
_HAIRS: Final = ((28, 22, 20), (62, 40, 26), (112, 74, 40), (176, 138, 84), (120, 118, 116))


@dataclass(frozen=True)
class _Palette:
    paper: Color
    second: Color
    ink: Color
    accent: Color


def draw_card(design: int) -> FlatObject:
    """Draw the card of design number ``design``, at least 0: the same number, the same card.

    It has a tinted ground with guilloche lines, a portrait, a headline and fields of text; some have a chip, a second
    portrait, an emblem, a barcode, a signature or a machine-readable line. Names are random syllables.
    """
    rng = np.random.default_rng([_DESIGN_STREAM, design])
    palette = _palette(rng)
    picture = Image.fromarray(_ground(rng, palette))
    draw = ImageDraw.Draw(picture)
    is_portrait_right = rng.random() < 0.2
    portrait_width = int(rng.integers(220, 270))
    portrait_left = _WIDTH - 40 - portrait_width if is_portrait_right else int(rng.integers(30, 46))
    text_left = 40 if is_portrait_right else portrait_left + portrait_width + 26
    text_right = portrait_left - 26 if is_portrait_right else _WIDTH - 30
    top = _headline(draw, rng, palette)
    portrait_height = round(portrait_width * rng.uniform(1.2, 1.32))
    _portrait(picture, rng, (portrait_left, top + 8, portrait_width, portrait_height))
    _below_portrait(draw, rng, palette, (portrait_left, top + 8 + portrait_height, portrait_width))
    _fields(draw, rng, palette, (text_left, top + 4, text_right))
    _extras(picture, rng, palette, text_right)
    _specimen(picture, rng, text_left)
    return FlatObject(np.array(picture), LONG_SIDE_MM, SHORT_SIDE_MM, CORNER_RADIUS_MM, f"drawn {design}")


def _palette(rng: np.random.Generator) -> _Palette:
    hue = rng.random()
    other = (hue + rng.uniform(0.25, 0.6)) % 1.0
    pale = rng.uniform(0.06, 0.26)
    return _Palette(
        paper=_rgb(hue, pale, rng.uniform(0.88, 0.98)),
        second=_rgb(other, pale, rng.uniform(0.86, 0.98)),
        ink=_rgb(hue, 0.5, rng.uniform(0.08, 0.22)),
        accent=_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.35, 0.7)),
    )


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, color: Color, *, bold: bool = False
) -> float:
    """Write ``text`` and return where it ends."""
    font = ImageFont.load_default(size)  # Pillow's font: none has to be installed
    draw.text(at, text, fill=color, font=font, stroke_width=1 if bold else 0)
    return at[0] + float(font.getlength(text))


def _ground(rng: np.random.Generator, palette: _Palette) -> Pixels:
    """Two tints running into each other, with fine waves of lines as banknotes have."""
    blend = gradient(rng, _HEIGHT, _WIDTH) * 0.7 + (smooth_noise(rng, _HEIGHT, _WIDTH, (3, 5), 2) + 1) * 0.15
    ground = tint(blend, palette.paper, palette.second)
    lines = ground.copy()
    along = np.linspace(-40, _WIDTH + 40, 160)
    for _ in range(int(rng.integers(2, 4))):
        color = _rgb(rng.random(), rng.uniform(0.25, 0.6), rng.uniform(0.55, 0.8))
        swing, wave, phase = rng.uniform(15, 60), rng.uniform(90, 320), rng.uniform(0, 6.3)
        for row in np.arange(-60, _HEIGHT + 60, rng.uniform(9, 18)):
            across = row + swing * np.sin(along / wave * 2 * np.pi + phase + row / 90) + 8 * np.sin(along / 37)
            points = np.rint(np.stack([along, across], axis=1) * 16).astype(np.int32)
            cv2.polylines(lines, [points], False, color, 1, cv2.LINE_AA, 4)
    if rng.random() < 0.7:
        _rosette(lines, rng, palette)
    return np.asarray(cv2.addWeighted(ground, 0.6, lines, 0.4, 0), np.uint8)


def _rosette(image: Pixels, rng: np.random.Generator, palette: _Palette) -> None:
    center = np.array([rng.uniform(0.5, 0.85) * _WIDTH, rng.uniform(0.4, 0.7) * _HEIGHT])
    turn = np.linspace(0, 2 * np.pi, 240)
    petals = int(rng.integers(6, 14))
    for radius in np.linspace(30, rng.uniform(120, 210), 16):
        reach = radius * (1 + 0.18 * np.sin(petals * turn + radius / 20))
        points = center + np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach[:, None]
        cv2.polylines(image, [np.rint(points * 16).astype(np.int32)], True, palette.accent, 1, cv2.LINE_AA, 4)


def _headline(draw: ImageDraw.ImageDraw, rng: np.random.Generator, palette: _Palette) -> int:
    """The name of the state and of the document; returns where the rest may start."""
    state = words.word(rng, 3).upper()
    kind = _KINDS[int(rng.integers(len(_KINDS)))]
    style = int(rng.integers(3))
    if style == 0:
        draw.rectangle((0, 0, _WIDTH, 84), fill=palette.accent)
        _text(draw, (40, 16), state, 46, (255, 255, 255), bold=True)
        _text(draw, (480, 28), kind, 32, (255, 255, 255))
        return 98
    if style == 1:
        end = _text(draw, (40, 16), state, 64, palette.accent, bold=True)
        _text(draw, (end + 28, 40), kind, 34, palette.ink, bold=True)
        return 98
    _text(draw, (40, 10), f"REPUBLIC OF {state}", 44, palette.accent, bold=True)
    draw.rectangle((40, 68, _WIDTH - 40, 104), fill=palette.accent)
    _text(draw, (60, 70), kind, 28, (255, 255, 255), bold=True)
    return 114


def _portrait(picture: Image.Image, rng: np.random.Generator, box: tuple[int, int, int, int]) -> None:
    """Head and shoulders before a plain ground, drawn at double size and reduced for smooth edges."""
    left, top, width, height = box
    portrait = Image.new("RGB", (200, 250), _rgb(rng.random(), rng.uniform(0.02, 0.6), rng.uniform(0.6, 0.95)))
    draw = ImageDraw.Draw(portrait)
    skin = _SKINS[int(rng.integers(len(_SKINS)))]
    shade: Color = (round(skin[0] * 0.82), round(skin[1] * 0.78), round(skin[2] * 0.75))
    hair = _HAIRS[int(rng.integers(len(_HAIRS)))]
    is_long = rng.random() < 0.5
    if is_long:
        draw.rounded_rectangle((48, 40, 152, 200), 48, fill=hair)
    draw.ellipse((14, 186, 186, 330), fill=_rgb(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.15, 0.7)))
    draw.polygon([(78, 186), (122, 186), (100, 224)], fill=shade)
    draw.rectangle((82, 150, 118, 196), fill=shade)
    draw.ellipse((58, 50, 142, 172), fill=skin)
    draw.pieslice((54, 36, 146, 140), 180, 360, fill=hair)
    draw.ellipse((60, 72, 140, 128), fill=skin)
    for eye in (82, 118):
        draw.line((eye - 11, 97, eye + 11, 95), fill=hair, width=4)
        draw.ellipse((eye - 9, 102, eye + 9, 112), fill=(245, 243, 240))
        draw.ellipse((eye - 5, 102, eye + 5, 112), fill=(40, 32, 28))
    draw.line((101, 108, 96, 132, 104, 134), fill=shade, width=4)
    draw.ellipse((84, 144, 116, 154), fill=(round(skin[0] * 0.75), round(skin[1] * 0.5), round(skin[2] * 0.5)))
    if rng.random() < 0.3:
        for eye in (82, 118):
            draw.ellipse((eye - 15, 95, eye + 15, 119), outline=(30, 30, 34), width=3)
    pixels = np.array(portrait, np.float32)
    pixels *= 1 + 0.16 * smooth_noise(rng, 250, 200, (4, 3), 5, 0.75)[..., None]
    pixels *= np.linspace(1.1, 0.86, 200, dtype=np.float32)[None, :, None]
    soft = cv2.GaussianBlur(np.clip(pixels, 0, 255).astype(np.uint8), (0, 0), 1.0)
    resized = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    picture.paste(Image.fromarray(np.asarray(resized, np.uint8)), (left, top))


def _below_portrait(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, palette: _Palette, place: tuple[int, int, int]
) -> None:
    """A signature or a barcode in what room is left under the portrait."""
    left, top, width = place
    if _HEIGHT - top < 60:
        return
    if rng.random() < 0.5:
        x = left
        while x < left + width - 6:
            bar = int(rng.integers(1, 5))
            draw.rectangle((x, top + 14, x + bar, min(top + 54, _HEIGHT - 16)), fill=(20, 20, 24))
            x += bar + int(rng.integers(2, 6))
        return
    along = np.linspace(0, 1, 90)
    waves = sum(rng.uniform(4, 13) * np.sin(along * rng.uniform(8, 44) + rng.uniform(0, 6)) for _ in range(3))
    loops = along * (width - 30) + left + 8 + 9 * np.sin(along * rng.uniform(30, 50))
    middle = min(top + 34, _HEIGHT - 30)
    draw.line([(float(x), float(middle + y)) for x, y in zip(loops, waves, strict=True)], fill=palette.ink, width=3)


def _fields(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, palette: _Palette, place: tuple[int, int, int]
) -> None:
    """Labels and values, line by line."""
    left, y, right = place
    size = int(rng.integers(25, 32))
    is_label_above = rng.random() < 0.5
    issued = int(rng.integers(2012, 2024))
    fields = [
        ("Document no.", words.number(rng, 8)),
        ("Surname", words.word(rng, 2).upper()),
        ("Given names", f"{words.word(rng, 2)} {words.word(rng, 1)}".upper()),
        ("Date of birth", words.date(rng, 1945, 2004)),
        ("Place of birth", words.word(rng, 3).upper()),
        ("Address", f"{rng.integers(1, 400)} {words.word(rng, 2)} Street".upper()),
        ("Issued", words.date(rng, issued, issued)),
        ("Expires", words.date(rng, issued + 10, issued + 10)),
        ("Sex  Height", f"{'MFX'[int(rng.integers(3))]}   {rng.integers(150, 199)} cm"),
    ]
    for label, value in fields:
        step = size + (24 if is_label_above else 10)
        if y + step > _HEIGHT - 30:
            break
        if is_label_above:
            _text(draw, (left, y), label, 16, palette.accent)
            _text(draw, (left, y + 18), value, size, palette.ink, bold=True)
        else:
            end = _text(draw, (left, y + 6), label, 18, palette.accent)
            _text(draw, (min(end + 12, right - 150), y), value, size, palette.ink, bold=True)
        y += step


def _extras(picture: Image.Image, rng: np.random.Generator, palette: _Palette, right: int) -> None:
    """Chip, emblem or second portrait at the far side of the text, and sometimes a machine-readable line below."""
    draw = ImageDraw.Draw(picture)
    kind = int(rng.integers(4))
    x, y = right - 130, int(rng.integers(150, 250))
    if kind == 0:
        _chip(draw, (x, y))
    elif kind == 1:
        small = int(rng.integers(90, 120))
        _portrait(picture, rng, (right - small, _HEIGHT - 40 - round(small * 1.25), small, round(small * 1.25)))
    elif kind == 2:
        draw.ellipse((x + 20, y, x + 110, y + 90), fill=(226, 178, 42))
        turn = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 36, 15)
        star = [
            (float(x + 65 + r * np.cos(a)), float(y + 45 + r * np.sin(a))) for a, r in zip(turn, reach, strict=True)
        ]
        draw.polygon(star, fill=(255, 255, 255))
    if rng.random() < 0.3:
        draw.rectangle((0, _HEIGHT - 30, _WIDTH, _HEIGHT), fill=palette.accent)
        line = f"ID<{words.word(rng, 3)}<<{words.word(rng, 2)}<{words.number(rng, 9)}<<<<<<".upper()
        _text(draw, (40, _HEIGHT - 30), line, 24, (255, 255, 255))


def _chip(draw: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    """Contacts as on a smart card."""
    x, y = at
    draw.rounded_rectangle((x, y, x + 120, y + 96), 16, fill=(208, 178, 104), outline=(140, 112, 52), width=3)
    for row in (32, 64):
        draw.line((x, y + row, x + 120, y + row), fill=(140, 112, 52), width=3)
    for column in (42, 78):
        draw.line((x + column, y, x + column, y + 96), fill=(140, 112, 52), width=3)


def _specimen(picture: Image.Image, rng: np.random.Generator, left: int) -> None:
    """SPECIMEN, large and half transparent, across the text."""
    stamp = Image.new("RGBA", (480, 110), (0, 0, 0, 0))
    ImageDraw.Draw(stamp).text(
        (4, 4), "SPECIMEN", fill=(170, 30, 40, 120), font=ImageFont.load_default(84), stroke_width=2
    )
    turned = stamp.rotate(float(rng.uniform(4, 22)), expand=True, resample=Image.Resampling.BICUBIC)
    picture.paste(turned, (left, int(rng.integers(190, 300))), turned)
