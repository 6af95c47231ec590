"""The structure of encoded images, checked before any decoder sees them.

A few bytes can cost a decoder minutes or gigabytes: a directory whose entries all point to the same megabytes, scans or
chunks by the million, compressed zeros after the last pixel. All work here is bounded by the length of the data, and
what is out of proportion is refused. Pillow's headers do not replace this: its TIFF and EXIF readers copy what every
entry points to, its WebP reader starts the decoder, and none says whether OpenCV decodes the kind correctly.

Faults of "OpenCV 4.11" were seen there; what works around them stays until a newer one is known to be free of them.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import ImageError
from pipeline.jpeg_structure import END_OF_IMAGE, MOST_SEGMENTS, START_OF_SCAN, jpeg_scans, segments
from pipeline.tiff_structure import (
    CUT_OFF,
    ORIENTATION,
    TIFF_STARTS,
    bits_per_sample,
    directory,
    exif_orientation,
    is_planar,
    is_white_zero,
    unsupported,
)

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats accepted."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER: Final = b"\0\0\0\rIHDR"
_PNG_CHUNK_BYTES: Final = 12  # length, type and checksum, around a chunk's data
_PNG_MOST_CHUNKS: Final = 100_000  # the largest PNG allowed, in pieces of 8 kB as libpng writes them, has 8192
_PNG_CHUNK_MOST_BYTES: Final = 4 * 1024 * 1024
_PNG_ANIMATION: Final = (b"acTL", b"fcTL", b"fdAT")
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_PNG_HARMLESS_BYTES: Final = 512 * 1024  # inflated at most 1032 times, in two seconds, as large images take
_PIECE_BYTES: Final = 64 * 1024

_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})  # Huffman, lossless, arithmetic
_FRAME_NAMES: Final = {0xCB: "lossless arithmetic coding", 0xF7: "lossless coding (JPEG-LS)"}
_APP1: Final = 0xE1
_EXIF: Final = b"Exif\0\0"

_BIT_FIELDS: Final = 3
_BMP_BITS: Final = (1, 4, 8, 16, 24, 32)
_BMP_COMPRESSIONS: Final = (0, 1, 2, _BIT_FIELDS)  # none, runs of 8 and 4 bits
_BMP_COMPRESSION_NAMES: Final = {4: "a JPEG inside", 5: "a PNG inside"}
_HEADER_WITH_MASKS: Final = 56
_USUAL_MASKS: Final = (0xFF0000, 0xFF00, 0xFF)
_BYTE_MASKS: Final = {0xFF, 0xFF00, 0xFF0000, 0xFF000000}

_MOST_WEBP_CHUNKS: Final = 100
_WEBP_ANIMATED: Final = 0x02
_FIRST_QUARTER_TURN: Final = 5  # EXIF orientations 5 to 8 swap height and width


_FTYP: Final = b"ftyp"
_FTYP_NAMES: Final = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "Canon raw (CR3)",
}
_OTHER_FORMATS: Final = (
    (b"GIF8", "GIF"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    ((b"\0\0\0\x0cJXL ", b"\xff\x0a"), "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "Photoshop's PSD"),
    (b"%PDF", "PDF"),
    ((b"<svg", b"<?xml"), "SVG or other XML"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    ((b"#?RADIANCE", b"#?RGBE"), "Radiance HDR"),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7"), "Netpbm"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    ((b"FUJIFILM", b"IIU\0", b"IIRO", b"IIRS"), "camera raw"),
)


@dataclass(frozen=True)
class ImageHeader:
    """What an encoded image says of itself.

    Attributes:
        format: one of :data:`FORMATS`.
        width: in pixels, before EXIF orientation.
        height: likewise.
        orientation: EXIF orientation, 1 to 8.
        bits: of a sample; more than 8 are reduced to 8.
        frame: of a JPEG, where its frame header begins.
        first_scan: of a JPEG, where its first scan begins.
        tile_pixels: of a tiled TIFF, pixels of a tile.
        planar: of a TIFF, whether each color is stored separately.
        white_is_zero: of a TIFF, whether larger numbers are darker.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    frame: int = 0
    first_scan: int = 0
    tile_pixels: int = 0
    planar: bool = False
    white_is_zero: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width in pixels, EXIF orientation applied."""
        return (self.width, self.height) if self.orientation >= _FIRST_QUARTER_TURN else (self.height, self.width)


def read_header(data: bytes) -> ImageHeader:
    """Read format and size of an encoded image without decoding it.

    Raises:
        ImageError: the bytes are of no accepted format or of a kind that is not supported, or the header is broken.

    Example:
        >>> import cv2, numpy as np
        >>> header = read_header(cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes())
        >>> header.format, header.width, header.height
        ('PNG', 60, 40)
    """
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an encoded image", "empty")
    try:
        for starts, read in _READERS:
            # OpenCV gives whatever has this mark to its AVIF decoder first, a JPEG too.
            if data.startswith(starts) and data[4:8] != _FTYP:
                return read(data)
    except CUT_OFF:
        raise _no_image(data, "its header is cut off") from None
    raise _no_image(data)


def _no_image(data: bytes, detail: str = "") -> ImageError:
    accepted = ", ".join(FORMATS)
    if what := _base64_text(data):
        return ImageError(
            f"the image is {what}, {len(data)} characters; allowed: the file's own bytes ({accepted}). Decode it "
            "first, and send the bytes over gRPC, or over HTTP by the binary data extension: JSON cannot hold them",
            "format",
        )
    detail = detail or _other_format(data)
    return ImageError(
        f"the bytes are not an image of an accepted format{f' ({detail})' if detail else ''}: {len(data)} bytes that "
        f"start with {data[:8]!r}; accepted: {accepted}",
        "format",
    )


def _base64_text(data: bytes) -> str:
    """What kind of base64 text (RFC 4648, RFC 2397) came instead of an image; empty if none did."""
    head = data[:_BASE64_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n\"'")
    if head[:5].lower() == b"data:":
        return "a data: URI"
    head = b"".join(head.split()).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        start = base64.b64decode(head[: min(len(head) // 4 * 4, _BASE64_START)], validate=True)
    except ValueError:
        return ""
    return "base64 text" if len(start) > 2 and any(start.startswith(starts) for starts, _ in _READERS) else ""


_BASE64_HEAD: Final = 120
_BASE64_START: Final = 32


def _other_format(data: bytes) -> str:
    """The name of a known format that is not accepted, for messages; else empty."""
    if data[4:8] == _FTYP:
        name = _FTYP_NAMES.get(data[8:12], "a video (MP4 or QuickTime)")
    else:
        name = next((name for starts, name in _OTHER_FORMATS if data.startswith(starts)), "")
    return f"{name}, which is not supported; convert it to JPEG or PNG" if name else ""


def _read_png(data: bytes) -> ImageHeader:
    if data[12:16] == b"CgBI":
        raise ImageError.not_supported("PNG", "Apple's own compression (CgBI)")
    if data[8:16] != _PNG_HEADER or len(data) < 33:
        raise _no_image(data, "a PNG without its header")
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return ImageHeader("PNG", width, height, _png_orientation(data), bits)


def _png_orientation(data: bytes) -> int:
    """Orientation of the eXIf chunk, which may follow the pixels (PNG specification, 11.3.4.6)."""
    try:
        blocks = (data[start + 8 : end - 4] for kind, start, end in _png_chunks(data) if kind == b"eXIf")
        return next((exif_orientation(block.removeprefix(_EXIF)) for block in blocks), 0) or 1
    except ImageError:  # check_png reports it
        return 1


def _read_jpeg(data: bytes) -> ImageHeader:
    """Walk the segments to the first scan (ITU-T T.81, annex B)."""
    size = None
    frame = orientation = count = 0
    for marker, start, body in segments(data, 2):
        count += 1
        if marker == END_OF_IMAGE or (marker == START_OF_SCAN and size is None):
            raise _no_image(data, "a JPEG without a frame")
        if marker == START_OF_SCAN and size is not None:
            return ImageHeader("JPEG", size[1], size[0], orientation or 1, frame=frame, first_scan=start)
        if marker in _FRAMES and size is None:
            frame, size = start, struct.unpack_from(">HH", data, start + 5)
            _check_frame(data, start)
        elif marker == _APP1 and data[body + 2 : body + 8] == _EXIF:
            end = body + int.from_bytes(data[body : body + 2], "big")
            orientation = orientation or exif_orientation(data[body + 8 : end])
    if count == MOST_SEGMENTS:
        raise ImageError(
            f"the JPEG has more than {MOST_SEGMENTS} segments before its first scan. Encode the image again"
        )
    raise jpeg_truncated(data) if size else _no_image(data, "a JPEG without a frame")


def _check_frame(data: bytes, frame: int) -> None:
    """Refuse the kinds of JPEG that OpenCV's libjpeg-turbo does not decode (ITU-T T.81, table B.1 and B.2.2)."""
    marker, bits, height, components = data[frame + 1], data[frame + 4], *struct.unpack_from(">H2xB", data, frame + 5)
    if marker not in _DECODED_FRAMES:
        raise ImageError.not_supported("JPEG", _FRAME_NAMES.get(marker, "hierarchical (differential) coding"))
    if bits != 8:
        raise ImageError.not_supported("JPEG", f"{bits}-bit samples")
    if not height:
        raise ImageError.not_supported("JPEG", "its height behind its rows (DNL)")
    if components not in (1, 3, 4):
        raise ImageError.not_supported("JPEG", f"{components} components a pixel")
    length = int.from_bytes(data[frame + 2 : frame + 4], "big")
    if length != 8 + 3 * components:
        raise ImageError(
            f"the JPEG's frame header is damaged: {length} bytes for {components} components. Send the whole file"
        )


def jpeg_truncated(data: bytes) -> ImageError:
    """The refusal of a JPEG that was cut off."""
    fault = f"the JPEG is truncated: its {len(data)} bytes do not hold all of its rows. Send the whole file"
    return ImageError(fault, "truncated")


def check_jpeg(data: bytes, header: ImageHeader, max_scanned_pixels: int) -> None:
    """Check that the scans of a JPEG are in proportion.

    A decoder visits all pixels for each scan, even one of ten bytes (libjpeg-turbo, "Two Issues with the JPEG
    Standard").

    Args:
        data: the JPEG.
        header: of it.
        max_scanned_pixels: most pixels times scans.

    Raises:
        ImageError: more scans than that.

    Example:
        >>> import cv2, numpy as np
        >>> jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> check_jpeg(jpeg, read_header(jpeg), max_scanned_pixels=2**26)
    """
    most = max(4, max_scanned_pixels // max(1, header.width * header.height))
    # The quick counts, of single bytes first, also count what only looks like a scan: thumbnails, and what follows.
    singles = np.count_nonzero(np.frombuffer(data, np.uint8, offset=header.first_scan) == START_OF_SCAN)
    looks = singles > most and data.count(b"\xff\xda", header.first_scan) > most
    if looks and jpeg_scans(data, header.first_scan, most)[0] > most:
        raise ImageError(
            f"the JPEG of {header.width}x{header.height} pixels has more than {most} scans. Encode the image again"
        )


def _read_webp(data: bytes) -> ImageHeader:
    """Read the first chunk (RFC 9649), and the EXIF chunk of an extended file."""
    kind = data[12:16]
    if data[8:12] != b"WEBP" or kind not in (b"VP8 ", b"VP8L", b"VP8X"):
        raise _no_image(data)
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        fault = (
            f"the WebP is truncated: it should have {8 + int.from_bytes(data[4:8], 'little')} bytes and has {len(data)}"
        )
        raise ImageError(f"{fault}. Send the whole file", "truncated")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return ImageHeader("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
    return ImageHeader("WEBP", width, height, _webp_orientation(data) if data[20] & 0x08 else 1)


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(_MOST_WEBP_CHUNKS):  # EXIF follows the picture or the frames
        position = data.find(b"EXIF", position)
        if position < 0:
            return 1
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        block = data[position + 8 : position + 8 + size].removeprefix(_EXIF)
        if block[:4] in TIFF_STARTS:
            return exif_orientation(block) or 1
        position += 4
    return 1


def still_webp(data: bytes, header: ImageHeader) -> bytes:
    """A WebP in a form that OpenCV 4.11 decodes: an animation becomes its first frame, without transparency.

    OpenCV's reader of animations reads memory that a damaged frame left unwritten, and may end the process.

    Raises:
        ImageError: the first frame is missing, cut off, or not as large as the canvas.

    Example:
        >>> import cv2, numpy as np
        >>> webp = cv2.imencode(".webp", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> still_webp(webp, read_header(webp)) == webp
        True
    """
    if data[12:16] != b"VP8X" or not data[20] & _WEBP_ANIMATED:
        return data
    end = 8 + int.from_bytes(data[4:8], "little")
    for kind, start, stop in _riff_chunks(data, 12, end):
        if kind != b"ANMF":
            continue
        # Position, size and duration of the frame come first (RFC 9649, section 2.7.1.1).
        for part, place, part_end in _riff_chunks(data, start + 24, stop):
            if part not in (b"VP8 ", b"VP8L"):
                continue
            picture = data[place:part_end]
            still = b"RIFF" + struct.pack("<I", len(picture) + 4) + b"WEBP" + picture
            # A still WebP's header has 30 bytes at least.
            frame = _read_webp(still) if len(still) >= 30 else None
            if frame is None or (frame.width, frame.height) != (header.width, header.height):
                size = "no size" if frame is None else f"{frame.width}x{frame.height} pixels"
                raise ImageError(
                    f"the first frame of the animated WebP has {size}, the canvas {header.width}x{header.height}; "
                    "allowed: the same size. Send one frame as a still image",
                    "format",
                )
            return still
        break
    raise ImageError("the animated WebP has no whole first frame. Send the whole file, or a still image", "truncated")


def _riff_chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk that is whole, in a bounded number (RFC 9649, section 2.3)."""
    for _ in range(_MOST_WEBP_CHUNKS):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        stop = start + 8 + size + size % 2
        if start + 8 > end or stop > end:
            return
        yield data[start : start + 4], start, stop
        start = stop


def _read_bmp(data: bytes) -> ImageHeader:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        bits, compression = struct.unpack_from("<HI", data, 28)
        if bits not in _BMP_BITS or compression not in _BMP_COMPRESSIONS:
            what = _BMP_COMPRESSION_NAMES.get(compression, f"{bits}-bit pixels, compression {compression}")
            raise ImageError.not_supported("BMP", what)
        _check_masks(data)
    return ImageHeader("BMP", width, abs(height))


def _check_masks(data: bytes) -> None:
    """Refuse the 32-bit color masks that OpenCV 4.11 ignores, or shifts by the wrong number of bits."""
    header_bytes, bits, compression = struct.unpack_from("<I10xHI", data, 14)
    if bits != 32 or compression != _BIT_FIELDS:
        return
    masks = struct.unpack_from("<III", data, 54)
    if masks != _USUAL_MASKS and (header_bytes < _HEADER_WITH_MASKS or not set(masks) <= _BYTE_MASKS):
        given = ", ".join(f"{mask:#010x}" for mask in masks)
        raise ImageError(
            f"the BMP has the color masks {given}; allowed: whole bytes, in a header of {_HEADER_WITH_MASKS} bytes or "
            "more. Encode the image again"
        )


def _read_tiff(data: bytes) -> ImageHeader:
    single: dict[int, int] = {}
    tags: dict[int, tuple[int, ...]] = {}
    for entry in directory(data):
        tags.setdefault(entry.tag, entry.numbers)
        if entry.count == 1:  # decoders differ in which of several they use
            single[entry.tag] = max(entry.numbers[0], single.get(entry.tag, 0))
    if 256 not in single or 257 not in single:
        raise _no_image(data, "a TIFF that does not say how large it is")
    if what := unsupported(tags):
        raise ImageError.not_supported("TIFF", what)
    orientation = single.get(ORIENTATION, 1)
    return ImageHeader(
        "TIFF",
        single[256],
        single[257],
        orientation if 1 <= orientation <= 8 else 1,
        bits_per_sample(tags),
        tile_pixels=single.get(322, 0) * single.get(323, 0),
        planar=is_planar(tags),
        white_is_zero=is_white_zero(tags),
    )


_READERS: Final = (
    (_PNG_SIGNATURE, _read_png),
    (b"\xff\xd8\xff", _read_jpeg),
    (b"RIFF", _read_webp),
    (b"BM", _read_bmp),
    (TIFF_STARTS, _read_tiff),
)


def check_png(data: bytes) -> None:
    """Check that a PNG is whole and that its pixel data is in proportion.

    OpenCV allocates as many bytes as a chunk claims, up to 2 GB, before it reads them; and libpng inflates what follows
    the last pixel, to a thousand times its size.

    Raises:
        ImageError: truncated, too many chunks, or more pixel data than the header allows for.

    Example:
        >>> import cv2, numpy as np
        >>> png = cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> check_png(png)
        >>> check_png(png[:-20])
        Traceback (most recent call last):
        pipeline.errors.ImageError: the PNG is truncated: ...
    """
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    pieces = [(start + 8, end - 4) for kind, start, end in _png_chunks(data) if kind == b"IDAT"]
    if sum(end - start for start, end in pieces) <= _PNG_HARMLESS_BYTES:
        return
    # Interlaced, each row has up to seven parts, each with a filter byte (PNG specification, section 8).
    allowed = (width * bits * _PNG_CHANNELS.get(color, 4) // 8 + 16) * height * 1.01 + 1024
    unpacker = zlib.decompressobj()
    for start, end in pieces:
        for place in range(start, end, _PIECE_BYTES):
            piece = data[place : min(end, place + _PIECE_BYTES)]
            while piece and not unpacker.eof:
                try:
                    allowed -= len(unpacker.decompress(piece, 1 << 20))
                except zlib.error:
                    return  # libpng reports it
                piece = unpacker.unconsumed_tail
                if allowed < 0:
                    raise ImageError(
                        f"the PNG holds more pixel data than {width}x{height} pixels need. Encode the image again"
                    )


def plain_png(data: bytes) -> bytes:
    """A checked PNG in a form that OpenCV 4.11 decodes.

    An animation becomes its default image (PNG specification, 4.9): OpenCV crashes on animations with contradictory
    numbers. Pixel data is cut into chunks of 4 MiB: OpenCV refuses chunks above 8 MB. Where there is none, OpenCV looks
    for it behind the end, and allocates up to 2 GB of what a chunk there claims: the end is the end.

    Example:
        >>> import cv2, numpy as np
        >>> png = cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> plain_png(png) == png
        True
    """
    animated = any(kind in data for kind in _PNG_ANIMATION)
    chunks = list(_png_chunks(data))
    if not animated and len(data) <= _PNG_CHUNK_MOST_BYTES:
        return data[: chunks[-1][2]]
    parts = [_PNG_SIGNATURE]
    for kind, start, end in chunks:
        if kind in _PNG_ANIMATION:
            continue
        if end - start <= _PNG_CHUNK_MOST_BYTES:
            parts.append(data[start:end])
        elif kind == b"IDAT":
            for place in range(start + 8, end - 4, _PNG_CHUNK_MOST_BYTES):
                body = kind + data[place : min(end - 4, place + _PNG_CHUNK_MOST_BYTES)]
                parts += [struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body))]
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk, to IEND (PNG specification, section 5.3).

    Raises:
        ImageError: IEND is missing, or there are too many chunks.
    """
    position = len(_PNG_SIGNATURE)
    for _ in range(_PNG_MOST_CHUNKS):
        end = position + _PNG_CHUNK_BYTES + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            fault = f"the PNG is truncated: its {len(data)} bytes end before its IEND chunk does. Send the whole file"
            raise ImageError(fault, "truncated")
        kind = data[position + 4 : position + 8]
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise ImageError(f"the PNG has more than {_PNG_MOST_CHUNKS} chunks. Encode the image again")
