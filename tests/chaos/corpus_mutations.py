"""Valid images made invalid: by chance, and with the structure of their format in view."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from tests.chaos.corpus_valid import chunk, riff

Part = tuple[bytes, bytes]
Seeds = Sequence[tuple[str, bytes]]
Mutation = Callable[[random.Random, bytes, Seeds], bytes]

_EXTREMES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def mutate(chance: random.Random, seeds: Seeds) -> tuple[str, str, bytes]:
    """Draw one seed and one mutation; returns the mutation's name, the seed's and the bytes."""
    name, data = seeds[chance.randrange(len(seeds))]
    fitting = {way: mutation for way, (mutation, starts) in _BY_FORMAT.items() if data.startswith(starts)}
    ways = fitting if fitting and chance.random() < 0.4 else _ANYWHERE
    way = chance.choice(list(ways))
    return way, name, ways[way](chance, data, seeds)


def flip_bits(chance: random.Random, data: bytes, seeds: Seeds, within: int | None = None) -> bytes:
    changed = bytearray(data)
    size = len(data[:within])
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    return data[: chance.randrange(len(data))]


def splice(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    other = seeds[chance.randrange(len(seeds))][1]
    return data[: chance.randrange(1, len(data))] + other[chance.randrange(len(other)) :]


def foreign_header(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    other = seeds[chance.randrange(len(seeds))][1]
    length = chance.choice((4, 8, 16, 33, 64))
    return other[:length] + data[length:]


def overwrite_number(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3))):
        width = chance.choice((1, 2, 4))
        place = chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))
        order = chance.choice(("big", "little"))
        number = (chance.choice(_EXTREMES) & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
        changed[place : place + width] = number
    return bytes(changed)


def cut_out(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.choice((1, 4, 100, 1000)) :]


def repeat(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice((1, 4, 100, 1000))]
    return data[:start] + piece * chance.choice((2, 3, 50)) + data[start:]


def insert_noise(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + chance.randbytes(chance.choice((1, 4, 64, 1000))) + data[start:]


def fill(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    start = chance.randrange(len(data))
    length = min(chance.choice((4, 64, 1000)), len(data) - start)
    return data[:start] + bytes([chance.choice((0, 0xFF, 0x41))]) * length + data[start + length :]


def _rearrange(chance: random.Random, parts: list[Part], kinds: Sequence[bytes], seeds: Seeds) -> list[Part]:
    """One part of a file changed in bits, numbers or kind, repeated, left out or cut short; sometimes all shuffled."""
    if not parts:
        return parts
    at = chance.randrange(len(parts))
    kind, content = parts[at]
    changed: list[Part] = chance.choice(
        (
            [(kind, flip_bits(chance, content, seeds) if content else b"")],
            [(kind, content)] * 2,
            [],
            [(kind, content[: chance.randrange(len(content) + 1)])],
            [(chance.choice(kinds), content)],
            [(kind, overwrite_number(chance, content, seeds)[: len(content)] if content else b"")],
        )
    )
    others = [*parts[:at], *changed, *parts[at + 1 :]]
    return chance.sample(others, len(others)) if chance.random() < 0.15 else others


def png_chunks(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    kinds = (b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"eXIf", b"IDAT")
    chunks = _rearrange(chance, _png_chunks(data), kinds, seeds)
    return _PNG_SIGNATURE + b"".join(chunk(*each) for each in chunks)


def png_numbers(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    chunks = _png_chunks(data)
    places = [index for index, (kind, _) in enumerate(chunks) if kind in (b"IHDR", b"fcTL", b"acTL", b"PLTE", b"tRNS")]
    for at in chance.sample(places, min(len(places), chance.choice((1, 2)))):
        kind, content = chunks[at]
        chunks[at] = (kind, overwrite_number(chance, content, seeds)[: len(content)] if content else content)
    return _PNG_SIGNATURE + b"".join(chunk(*each) for each in chunks)


def png_pixels(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    chunks = _png_chunks(data)
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    try:
        raw = zlib.decompress(packed)
    except zlib.error:
        return data
    action = chance.randrange(3)
    raw = (flip_bits(chance, raw, seeds), raw[: chance.randrange(len(raw))], raw * 20)[action] if raw else raw
    others = [each for each in chunks if each[0] != b"IDAT"]
    return _PNG_SIGNATURE + b"".join(
        chunk(*each) for each in [*others[:-1], (b"IDAT", zlib.compress(raw)), *others[-1:]]
    )


def tiff_entries(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data)
    start = int(struct.unpack_from(f"{order}I", data, 4)[0])
    if start + 2 > len(data):
        return data
    count = int(struct.unpack_from(f"{order}H", data, start)[0])
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = start + 2 + 12 * chance.randrange(max(1, count))
        field, width = chance.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4)))
        value = chance.choice((*_EXTREMES, 2, 3, 4, 5, 8, 16, 32, 64, 258, 322, 324, start, len(data) - 1))
        packed = struct.pack(f"{order}I", value)
        if place + field + width <= len(changed):
            half = packed[:2] if order == "<" else packed[2:]
            changed[place + field : place + field + width] = packed if width == 4 else half
    return bytes(changed)


def jpeg_segments(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    parts, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        size = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        parts.append((data[place : place + 2], data[place + 2 : place + size]))
        place += size
    kinds = [bytes([0xFF, marker]) for marker in range(0xC0, 0x100)]
    return data[:2] + b"".join(kind + body for kind, body in _rearrange(chance, parts, kinds, seeds)) + data[place:]


def riff_chunks(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    parts, place = [], 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        parts.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    kinds = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF", b"ANIM", b"EXIF")
    return riff(*_rearrange(chance, parts, kinds, seeds))


def bmp_header(chance: random.Random, data: bytes, seeds: Seeds) -> bytes:
    changed = bytearray(data)
    fields = ((10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4), (50, 4))
    for place, width in chance.sample(fields, chance.choice((1, 2, 3))):
        value = chance.choice((*_EXTREMES, 2, 3, 4, 8, 12, 16, 24, 32, 40, 64, 108, 124))
        changed[place : place + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(changed)


_ANYWHERE: Final[dict[str, Mutation]] = {
    "Bit flips": flip_bits,
    "Bit flips in the header": functools.partial(flip_bits, within=64),
    "Truncation": truncate,
    "Spliced with another image": splice,
    "Header of another image": foreign_header,
    "Extreme numbers": overwrite_number,
    "A piece cut out": cut_out,
    "A piece repeated": repeat,
    "Noise inserted": insert_noise,
    "A piece filled with one byte": fill,
}
_BY_FORMAT: Final[dict[str, tuple[Mutation, bytes | tuple[bytes, ...]]]] = {
    "PNG chunks changed, right checksums": (png_chunks, _PNG_SIGNATURE),
    "PNG header or frame numbers extreme, right checksums": (png_numbers, _PNG_SIGNATURE),
    "PNG pixel data damaged inside valid compression": (png_pixels, _PNG_SIGNATURE),
    "TIFF directory entries changed": (tiff_entries, (b"II*\0", b"MM\0*")),
    "JPEG segments changed": (jpeg_segments, b"\xff\xd8"),
    "WebP chunks changed": (riff_chunks, b"RIFF"),
    "BMP header fields extreme": (bmp_header, b"BM"),
}


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks = []
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks
