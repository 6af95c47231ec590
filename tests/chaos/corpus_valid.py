"""Images to send: small valid ones in every accepted format and many of its variants, from which mutations start."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
from PIL import Image

SIZE: Final = (96, 64)
"""Width and height: large enough for several blocks, tiles and strips, small enough to be quick."""


@dataclass(frozen=True)
class Sample:
    """One image to send."""

    kind: str  # row of the table
    name: str  # of the file, or how it was made
    data: bytes  # its bytes
    # What must become of it; ``any`` is a valid answer or a refusal
    expects: Literal["any", "answered", "refused"] = "any"


def valid_images() -> dict[str, bytes]:
    """Name to encoded image; every one of them is answered."""
    chance = np.random.default_rng(7)
    noise = chance.integers(0, 256, (SIZE[1], SIZE[0], 4), np.uint8)
    rgba = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    return {**_jpegs(rgb, gray), **_pngs(rgba, rgb, gray), **_webps(rgba, rgb), **_bmps(rgb, gray), **_tiffs(rgb, gray)}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode by Pillow."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int = 6) -> bytes:
    """An EXIF block with an orientation, some text and a GPS directory."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = "a description"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum (PNG specification, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of chunks, each a kind and its data (RFC 9649, 2.3)."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpegs(rgb: Image.Image, gray: Image.Image) -> dict[str, bytes]:
    restarts = cv2.imencode(".jpg", np.asarray(rgb), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()
    return {
        "jpeg baseline": encoded(rgb, "JPEG", quality=80),
        "jpeg 4:4:4": encoded(rgb, "JPEG", quality=95, subsampling=0),
        "jpeg progressive": encoded(rgb, "JPEG", quality=80, progressive=True),
        "jpeg gray": encoded(gray, "JPEG", quality=80),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG", quality=80),
        "jpeg with restarts": restarts,
        "jpeg with exif": encoded(rgb, "JPEG", quality=80, exif=exif()),
        "jpeg with thumbnail": encoded(rgb, "JPEG", quality=80, exif=exif(), icc_profile=bytes(700), comment=b"x" * 99),
        "jpeg of several pictures": encoded(rgb, "MPO", save_all=True, append_images=[gray.convert("RGB")] * 2),
        "jpeg to be reduced": encoded(rgb.resize((1400, 1300)), "JPEG", quality=30, exif=exif()),
    }


def _pngs(rgba: Image.Image, rgb: Image.Image, gray: Image.Image) -> dict[str, bytes]:
    sixteen = np.asarray(rgba).astype(np.uint16) * 257
    frames = [rgb.rotate(90 * turn) for turn in range(4)]
    return {
        "png rgb": encoded(rgb, "PNG"),
        "png rgba": encoded(rgba, "PNG"),
        "png gray": encoded(gray, "PNG"),
        "png gray with alpha": encoded(rgba.convert("LA"), "PNG"),
        "png palette": encoded(rgb.quantize(200), "PNG"),
        "png palette of 4 bits": encoded(rgb.quantize(16), "PNG", transparency=3),
        "png of one bit": encoded(gray.convert("1"), "PNG"),
        "png of 16 bits": cv2.imencode(".png", sixteen)[1].tobytes(),
        "png with exif": encoded(rgb, "PNG", exif=exif(), icc_profile=bytes(700), dpi=(300, 300)),
        "apng": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50),
        "apng with alpha": encoded(rgba, "PNG", save_all=True, append_images=[rgba.rotate(180)], disposal=2, blend=1),
    }


def _webps(rgba: Image.Image, rgb: Image.Image) -> dict[str, bytes]:
    frames = [rgb.rotate(90 * turn) for turn in range(1, 4)]
    return {
        "webp": encoded(rgb, "WEBP", quality=80),
        "webp with alpha": encoded(rgba, "WEBP", quality=80),
        "webp lossless": encoded(rgb, "WEBP", lossless=True),
        "webp lossless with alpha": encoded(rgba, "WEBP", lossless=True, exact=True),
        "webp with exif": encoded(rgb, "WEBP", quality=80, exif=exif(), icc_profile=bytes(700)),
        "webp animated": encoded(rgb, "WEBP", save_all=True, append_images=frames, quality=80),
        "webp animated lossless": encoded(rgba, "WEBP", save_all=True, append_images=frames, lossless=True),
    }


def _bmps(rgb: Image.Image, gray: Image.Image) -> dict[str, bytes]:
    return {
        "bmp": encoded(rgb, "BMP"),
        "bmp gray": encoded(gray, "BMP"),
        "bmp palette": encoded(rgb.quantize(64), "BMP"),
        "bmp of one bit": encoded(gray.convert("1"), "BMP"),
        "bmp of 32 bits": cv2.imencode(".bmp", np.asarray(rgb.convert("RGBA")))[1].tobytes(),
    }


def _tiffs(rgb: Image.Image, gray: Image.Image) -> dict[str, bytes]:
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    found = {f"tiff {name}": encoded(rgb, "TIFF", compression=name) for name in compressions}
    for name in ("group3", "group4"):
        found[f"tiff {name}"] = encoded(gray.convert("1"), "TIFF", compression=name)
    return found | {
        "tiff gray": encoded(gray, "TIFF"),
        "tiff palette": encoded(rgb.quantize(64), "TIFF"),
        "tiff cmyk": encoded(rgb.convert("CMYK"), "TIFF"),
        "tiff of 16 bits": cv2.imencode(".tiff", np.asarray(rgb).astype(np.uint16) * 257)[1].tobytes(),
        "tiff of several pages": encoded(rgb, "TIFF", save_all=True, append_images=[gray, rgb.resize((20, 30))]),
        "tiff with exif": encoded(rgb, "TIFF", exif=exif()),
        "tiff in strips": encoded(rgb, "TIFF", compression="tiff_lzw", tiffinfo={278: 5}),
    }
