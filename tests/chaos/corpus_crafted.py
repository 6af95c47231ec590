"""Images made for harm: bombs, wrong sizes, thousands of frames, pages and scans, circular EXIF, and no images."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from PIL import Image

from tests.chaos.corpus_valid import Sample, chunk, encoded, exif, riff

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_EXTREME_SIZES: Final = ((0, 0), (0, 40), (1, 2**31 - 1), (2**31 - 1, 1), (60_000, 60_000), (2**32 - 1, 2**32 - 1))

Crafted = functools.partial(Sample, "made for harm")


@functools.cache
def crafted_images() -> list[Sample]:
    """All of them, always the same."""
    return [*_png(), *_jpeg(), *_webp(), *_bmp(), *_tiff(), *_exif(), *_no_images()]


def _picture(width: int = 96, height: int = 64) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))


# --- PNG ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int, pixels: bytes, *extra: bytes, bits: int = 8, color: int = 2) -> bytes:
    """A PNG of a header, more chunks, and compressed ``pixels``, none of which need fit together."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return _PNG + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    """``count`` zero bytes, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()])


def _png() -> Iterator[Sample]:
    row = b"\0" + bytes(96 * 3)
    whole = zlib.compress(row * 64)
    bomb = _zeros(256 << 20)
    yield Crafted("png with 256 MB behind its pixels", png(96, 64, bomb))
    yield Crafted("png with 1 GB behind its pixels", png(96, 64, _zeros(1 << 30)), "refused")
    yield Crafted("png with a bomb for a profile", png(96, 64, whole, chunk(b"iCCP", b"icc\0\0" + bomb)), "answered")
    yield Crafted("png with a bomb for a comment", png(96, 64, whole, chunk(b"zTXt", b"c\0\0" + bomb)), "answered")
    international = chunk(b"iTXt", b"c\0\1\0\0\0" + bomb)
    yield Crafted("png with a bomb for international text", png(96, 64, whole, international), "answered")
    yield Crafted("png with 20,000 comments", png(96, 64, whole, chunk(b"tEXt", b"a\0b") * 20_000))
    yield Crafted("png with 200,000 chunks", png(96, 64, whole, chunk(b"tEXt", b"a\0b") * 200_000), "refused")
    yield Crafted("png in pieces of one byte", _png_in_pieces(row * 64, 1), "answered")
    yield Crafted("png of 49 megapixels, all black", png(7000, 7000, _zeros(7000 * 21001)), "answered")
    yield Crafted("png of 68 megapixels", png(8250, 8250, _zeros(1 << 20)), "refused")
    for width, height in _EXTREME_SIZES:
        yield Crafted(f"png of {width}x{height}", png(width, height, whole), "refused")
    for bits, color in ((16, 3), (3, 2), (8, 1), (8, 7), (0, 0), (255, 255)):
        yield Crafted(f"png of {bits} bits, color type {color}", png(96, 64, whole, bits=bits, color=color), "refused")
    yield Crafted("png with a palette too long", png(96, 64, whole, chunk(b"PLTE", bytes(3 * 4000)), color=3))
    yield Crafted("png with no palette", png(96, 64, whole, color=3))
    lie = _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 0)) + b"\x7f\xff\xff\xffIDAT" + whole
    yield Crafted("png with a chunk of 2 GB", lie + chunk(b"IEND", b""), "refused")
    searched = png(96, 64, whole).replace(b"IDAT", b"IDAU") + b"\x7f\xff\xff\xf0tEXt"
    yield Crafted("png without pixels and 2 GB behind its end", searched, "refused")
    noise = np.random.default_rng(1).integers(0, 256, (1600, 7201), np.uint8)
    noise[:, 0] = 0  # no filter
    stored = zlib.compress(noise.tobytes(), 0)
    yield Crafted("png in one chunk of 11 MB", png(2400, 1600, stored), "answered")
    frames = [_picture(32, 32).rotate(90 * turn) for turn in range(4)] * 500
    yield Crafted("apng of 2000 frames", encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "answered")
    control = struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 0, 0, 9, 9)
    animated = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + chunk(b"fcTL", control)
    yield Crafted("apng with frames outside", png(96, 64, whole, animated), "answered")
    yield Crafted("apng with frames of nothing", png(96, 64, whole, chunk(b"fdAT", b"") * 5000), "answered")
    yield Crafted("png with EXIF cut off", png(96, 64, whole, chunk(b"eXIf", exif()[6:20])))


def _png_in_pieces(rows: bytes, size: int) -> bytes:
    packed = zlib.compress(rows)
    pieces = [chunk(b"IDAT", packed[start : start + size]) for start in range(0, len(packed) - size, size)]
    return png(96, 64, packed[len(pieces) * size :], *pieces)


# --- JPEG --------------------------------------------------------------------------------------------------------


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    place = min(at for at in (jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) if at >= 0)
    return jpeg[: place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9 :]


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each goes over all coefficients and takes a few bytes.

    Empty scans cost the decoder much and the sender little (libjpeg-turbo, doc/
    "Two Issues with the JPEG Standard").
    """
    gray = encoded(Image.new("L", (width, height), 90), "JPEG", progressive=True, quality=50)
    last = gray.rfind(b"\xff\xda")
    return gray[:last] + gray[last:-2] * scans + gray[-2:]


def _jpeg() -> Iterator[Sample]:
    plain = encoded(_picture(), "JPEG", quality=80)
    for scans in (500, 5000):
        yield Crafted(f"progressive jpeg of {scans} scans", many_scans(96, 64, scans))
    yield Crafted("progressive jpeg of 12 megapixels and 1000 scans", many_scans(4000, 3000, 1000), "refused")
    yield Crafted("progressive jpeg of 49 megapixels and 200 scans", many_scans(7000, 7000, 200), "refused")
    for width, height in ((65500, 65500), (0, 64), (96, 0), (65535, 1), (1, 65535), (7000, 7000), (4, 4)):
        yield Crafted(f"jpeg that claims {width}x{height}", with_size(plain, width, height))
    yield Crafted("jpeg of 49 megapixels", encoded(Image.new("RGB", (7000, 7000), "teal"), "JPEG"), "answered")
    yield Crafted("jpeg of a million segments", plain[:2] + _segment(0xFE, b"") * 1_000_000 + plain[2:], "refused")
    comments = _segment(0xFE, bytes(60_000)) * 300
    yield Crafted("jpeg with 18 MB of comments", plain[:2] + comments + plain[2:], "answered")
    yield Crafted("jpeg with 5000 EXIF blocks", plain[:2] + _segment(0xE1, exif()) * 5000 + plain[2:])
    yield Crafted("jpeg with 100,000 fill bytes", plain[:2] + b"\xff" * 100_000 + plain[2:])
    yield Crafted(
        "jpeg with 5000 quantization tables", plain[:2] + _segment(0xDB, b"\0" + bytes([9] * 64)) * 5000 + plain[2:]
    )
    yield Crafted("jpeg with a quantizer of zero", plain[:2] + _segment(0xDB, b"\0" + bytes(64)) + plain[2:])
    for marker, name in (
        (0xC1, "extended"),
        (0xC3, "lossless"),
        (0xC9, "arithmetic"),
        (0xCA, "progressive arithmetic"),
    ):
        yield Crafted(f"jpeg marked {name}", plain.replace(b"\xff\xc0", bytes([0xFF, marker]), 1))
    twelve = plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1)
    yield Crafted("jpeg of 12 bits", twelve)
    yield Crafted("jpeg of nothing but its ends", b"\xff\xd8\xff\xd9", "refused")
    yield Crafted("jpeg with no tables", b"\xff\xd8" + plain[plain.find(b"\xff\xc0") :])
    yield Crafted("jpeg with a jpeg for a thumbnail", plain[:2] + _segment(0xE1, b"Exif\0\0" + plain) + plain[2:])
    yield Crafted("jpeg with a profile in 255 parts", plain[:2] + _profile_parts() + plain[2:])
    yield Crafted("cmyk jpeg, inverted", encoded(_picture().convert("CMYK"), "JPEG"), "answered")


def _profile_parts() -> bytes:
    return b"".join(_segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 255]) + bytes(1000)) for part in range(1, 256))


# --- WebP --------------------------------------------------------------------------------------------------------


def _extended(flags: int, width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _webp() -> Iterator[Sample]:
    plain = encoded(_picture(), "WEBP", quality=70)
    lossy = (b"VP8 ", plain[20:])
    animation = (b"ANIM", bytes(6))
    frame = bytes(6) + (95).to_bytes(3, "little") + (63).to_bytes(3, "little") + bytes(4)
    inner = b"VP8 " + struct.pack("<I", len(lossy[1])) + lossy[1]
    for width, height in ((16384, 16384), (1 << 24, 1 << 24), (1 << 24, 1), (7000, 7000), (96, 64)):
        yield Crafted(f"webp with a canvas of {width}x{height}", riff(_extended(0, width, height), lossy))
        animated = riff(_extended(2, width, height), animation, (b"ANMF", frame + inner))
        yield Crafted(f"animated webp with a canvas of {width}x{height}", animated)
    still = [_picture(32, 32).rotate(90 * turn) for turn in range(4)]
    many = encoded(still[0], "WEBP", save_all=True, append_images=(still * 300)[1:], quality=20, method=0)
    yield Crafted("animated webp of 1200 frames", many, "answered")
    lie = riff(_extended(2, 96, 64), animation, (b"ANMF", bytes([0xFF] * 16) + inner))
    yield Crafted("animated webp with a frame outside", lie)
    yield Crafted("webp with 3000 unknown chunks", riff(_extended(0, 96, 64), lossy, *[(b"JUNK", b"x")] * 3000))
    yield Crafted("webp in itself", riff((b"VP8 ", plain)))
    yield Crafted("webp with no picture", riff(_extended(0, 96, 64)), "refused")
    yield Crafted("webp that claims 4 GB", b"RIFF\xff\xff\xff\xff" + plain[8:])
    yield Crafted(
        "webp of 16383x3000, one color", encoded(Image.new("RGB", (16383, 3000), "red"), "WEBP", method=0), "answered"
    )


# --- BMP ---------------------------------------------------------------------------------------------------------


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, pixels: bytes = b"", offset: int = 54) -> bytes:
    """A BMP header with any pixels."""
    head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0) + pixels


def _bmp() -> Iterator[Sample]:
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (-(2**31), -(2**31)),
        (0, 0),
        (7000, 7000),
        (1, -(2**31)),
        (65536, 65536),
    ):
        yield Crafted(f"bmp of {width}x{height}", bmp(width, height, pixels=bytes(100)), "refused")
    yield Crafted("bmp, runs past the end", bmp(4000, 4000, 8, 1, bytes(1024) + b"\xff\x01" * 20_000, 1078))
    yield Crafted("bmp, runs that jump out", bmp(64, 64, 8, 1, bytes(1024) + b"\0\2\xff\xff" * 5000, 1078))
    yield Crafted("bmp, runs of 4 bits", bmp(64, 64, 4, 2, bytes(64) + b"\x40\x12\0\0" * 64 + b"\0\1", 118))
    yield Crafted("bmp of 49 megapixels in runs", bmp(7000, 7000, 8, 1, bytes(1024) + b"\0\1", 1078))
    yield Crafted("bmp whose pixels lie outside", bmp(64, 64, pixels=bytes(64 * 192), offset=2**32 - 1))
    yield Crafted("bmp whose pixels are its header", bmp(64, 64, pixels=bytes(64 * 192), offset=0))
    yield Crafted("bmp upside down", bmp(64, -64, pixels=bytes(64 * 192)), "answered")
    for compression in (3, 4, 5, 6, 11, 2**32 - 1):
        yield Crafted(f"bmp with compression {compression}", bmp(64, 64, 32, compression, bytes(64 * 256)))


# --- TIFF --------------------------------------------------------------------------------------------------------


def tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"", following: int = 0, big: bool = False) -> bytes:
    """A little-endian TIFF of one directory: tag to type, count, value; ``data`` begins at byte 8 (big: 16)."""
    if big:
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(data)) + data + struct.pack("<Q", len(entries))
        body = b"".join(struct.pack("<HHQQ", tag, *entry) for tag, entry in sorted(entries.items()))
        return head + body + struct.pack("<Q", following)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries))
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return head + body + struct.pack("<I", following)


def layout(width: int, height: int, **changes: int) -> dict[int, tuple[int, int, int]]:
    """Entries of a gray TIFF in one strip, by the names of the tags that are changed."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273}
    tags |= {"samples": 277, "rows": 278, "bytes": 279, "planar": 284, "format": 339}
    tags |= {"tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_bytes": 325}
    values = {"width": width, "height": height, "bits": 8, "compression": 1, "photometric": 1, "samples": 1}
    if "tile_width" not in changes:
        values |= {"offset": 8, "rows": height, "bytes": width * height}
    return {tags[name]: (4, 1, value & 0xFFFFFFFF) for name, value in (values | changes).items()}


def _tiff() -> Iterator[Sample]:
    pixels = bytes(range(256)) * 16
    yield Crafted("tiff, 64x64", tiff(layout(64, 64), pixels), "answered")
    yield Crafted("big tiff, 64x64", tiff(layout(64, 64, offset=16), pixels, big=True))
    for width, height in _EXTREME_SIZES:
        yield Crafted(f"tiff of {width}x{height}", tiff(layout(width, height), pixels), "refused")
    for tile in (16, 4096, 30_000, 65_520, 2**31 - 16):
        lie = layout(64, 64, tile_width=tile, tile_height=tile, tile_offset=8, tile_bytes=4096)
        yield Crafted(f"tiff in tiles of {tile}", tiff(lie, pixels))
        yield Crafted(
            f"tiff in packed tiles of {tile}",
            tiff(lie | layout(64, 64, compression=8, **_tile(tile)), _zeros(64 << 20)),
        )
    for name, value in (
        ("bits", 64),
        ("bits", 2**32 - 1),
        ("samples", 65535),
        ("rows", 2**32 - 1),
        ("planar", 2),
        ("format", 3),
    ):
        yield Crafted(f"tiff with {name} {value}", tiff(layout(64, 64, **{name: value}), pixels))
    for compression in (2, 3, 4, 5, 6, 7, 8, 32773, 34661, 34712, 34925, 50000, 50001, 65535):
        yield Crafted(f"tiff with compression {compression}", tiff(layout(64, 64, compression=compression), pixels))
    yield Crafted(
        "tiff whose strips are packed a thousandfold", tiff(layout(7000, 7000, compression=8), _zeros(49_000_000))
    )
    for kind in (2, 3, 4, 12, 13, 16, 99):
        entries = layout(64, 64) | {270: (kind, 2**32 - 1, 8), 33432: (kind, 2**28, 8)}
        yield Crafted(f"tiff with 4 billion values of type {kind}", tiff(entries, pixels))
    same = {30_000 + tag: (1, 1_900_000, 8) for tag in range(1000)}
    yield Crafted(
        "tiff of 1000 entries, all the same megabytes", tiff(layout(64, 64) | same, bytes(2_000_000)), "refused"
    )
    strips = layout(64, 64) | {273: (4, 2**27, 8), 279: (4, 2**27, 8)}
    yield Crafted("tiff with 134 million strips", tiff(strips, pixels))
    at = 8 + len(pixels)
    yield Crafted("tiff whose directory follows itself", tiff(layout(64, 64), pixels, following=at))
    circle = layout(64, 64) | {330: (13, 1, at), 34665: (4, 1, at), 34853: (4, 1, at)}
    yield Crafted("tiff whose directory contains itself", tiff(circle, pixels))
    yield Crafted("tiff of 5000 pages", _tiff_pages(5000), "answered")
    yield Crafted("tiff with 65,535 entries", tiff(dict.fromkeys(range(65_535), (3, 1, 0)) | layout(64, 64), pixels))
    yield Crafted("tiff with no directory", b"II*\0\xff\xff\xff\xff", "refused")
    yield Crafted("tiff with an empty directory", tiff({}, pixels), "refused")


def _tile(size: int) -> dict[str, int]:
    return {"tile_width": size, "tile_height": size, "tile_offset": 8, "tile_bytes": 60_000}


def _tiff_pages(count: int) -> bytes:
    pixels = bytes(range(256)) * 16
    entries = layout(64, 64)
    size = 2 + 12 * len(entries) + 4
    first = 8 + len(pixels)
    head = struct.pack("<2sHI", b"II", 42, first) + pixels
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items())
    )
    pages = [directory + struct.pack("<I", first + (page + 1) * size) for page in range(count - 1)]
    return head + b"".join(pages) + directory + struct.pack("<I", 0)


# --- EXIF and others ---------------------------------------------------------------------------------------------


def _exif_blocks() -> Iterator[tuple[str, bytes]]:
    for orientation in (0, 9, 255, 65535):
        yield f"orientation {orientation}", tiff({0x0112: (3, 1, orientation)})
    for kind in (1, 2, 4, 5, 7, 12, 0, 999):
        yield f"orientation of type {kind}", tiff({0x0112: (kind, 1, 6)})
    yield "4 billion orientations", tiff({0x0112: (3, 2**32 - 1, 8)})
    yield "directories in a circle", tiff({0x0112: (3, 1, 6), 0x8769: (4, 1, 8), 0x8825: (4, 1, 8)}, following=8)
    yield "a directory outside", b"II*\0\xf0\xff\xff\xff"
    yield "65,000 entries that are not there", b"II*\0\x08\0\0\0\xe8\xfd" + bytes(30)
    yield "nothing", b""
    yield "another byte order", b"XX*\0\x08\0\0\0\0\0"
    yield "a maker's note of 60 kB", tiff({0x927C: (7, 60_000, 8)}, bytes(range(250)) * 240)


def _exif() -> Iterator[Sample]:
    picture = _picture()
    jpeg = encoded(picture, "JPEG", quality=80)
    large = encoded(picture.resize((2000, 1500)), "JPEG", quality=30)
    webp = encoded(picture, "WEBP", quality=70)
    row = zlib.compress((b"\0" + bytes(96 * 3)) * 64)
    for name, block in _exif_blocks():
        for size, base in (("", jpeg), ("large ", large)):
            data = base[:2] + _segment(0xE1, b"Exif\0\0" + block) + base[2:]
            yield Crafted(f"{size}jpeg, EXIF: {name}", data, "answered")
        yield Crafted(f"png, EXIF: {name}", png(96, 64, row, chunk(b"eXIf", block)), "answered")
        extended = riff(_extended(8, 96, 64), (b"VP8 ", webp[20:]), (b"EXIF", block))
        yield Crafted(f"webp, EXIF: {name}", extended, "answered")


def _no_images() -> Iterator[Sample]:
    picture = _picture()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("image.png", encoded(picture, "PNG"))
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
    others = {"gif": encoded(picture, "GIF"), "ico": encoded(picture, "ICO"), "pdf": encoded(picture, "PDF")}
    others |= {"ppm": encoded(picture, "PPM"), "tga": encoded(picture, "TGA"), "pcx": encoded(picture, "PCX")}
    others |= {"jpeg 2000": encoded(picture, "JPEG2000"), "svg": svg, "zip": archive.getvalue(), "text": b"hello " * 99}
    others |= {"nothing": b"", "a zero": b"\0", "a million zeros": bytes(1_000_000), "json": b'{"a": [1, 2]}' * 9}
    others |= {
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(400),
        "hdr": b"#?RADIANCE\n\n-Y 9 +X 9\n" + bytes(99),
    }
    others |= {
        "exr": b"v/1\x01\x02\0\0\0" + bytes(400),
        "sun raster": b"\x59\xa6\x6a\x95" + bytes(400),
        "elf": b"\x7fELF" + bytes(99),
    }
    others |= {"pickle": b"\x80\x04\x95\0\0\0\0\0\0\0\0cposix\nsystem\n.", "html": b"<!doctype html><img src=x>"}
    for name, data in others.items():
        yield Crafted(f"no image: {name}", data, "refused")
    for start in (b"\xff\xd8\xff\xe0", _PNG, b"RIFF\x10\0\0\0WEBPVP8 ", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        for length in (0, 1, 8, 60, 5000):
            yield Crafted(f"{start[:4]!r} and {length} bytes of nothing", start + bytes(length), "refused")
    yield Crafted("64 MB and a byte", b"\xff\xd8\xff\xe0" + bytes(64 * 1024 * 1024 - 3), "refused")
    yield Crafted("60 MB of nothing", bytes(60_000_000), "refused")
