"""What phones, cameras and editors write: orientations, ends, kinds. The reference is Pillow."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.errors import ImageError
from pipeline.images import ImageLimits, check_image, decode_for, decode_image
from tests.chaos import corpus_valid

WIDTH, HEIGHT = 96, 64
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
PIXELS = cv2.GaussianBlur(NOISE, (0, 0), 2)
PICTURE = Image.fromarray(PIXELS)
ORDERS = {"<": b"II*\0", ">": b"MM\0*"}


def encoded(kind, image=PICTURE, **options):
    return corpus_valid.encoded(image, kind, **options)


def pillow(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def close_to(image, expected, tolerance=4):
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= tolerance


def tiff_block(*entries, order="<"):
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'HI'[kind == 4]}", value).ljust(4, b"\0")
        for tag, kind, value in entries
    )
    return ORDERS[order] + struct.pack(f"{order}IH", 8, len(entries)) + packed + bytes(4)


def exif(orientation, order="<"):
    return tiff_block((0x010F, 3, 7), (0x0112, 3, orientation), order=order)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def app1_exif(orientation, order="<"):
    return segment(0xE1, b"Exif\0\0" + exif(orientation, order))


XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
ICC = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(300))
NO_ORIENTATION = segment(0xE1, b"Exif\0\0" + tiff_block((0x010F, 3, 7)))
BROKEN = segment(0xE1, b"Exif\0\0" + b"MM\0*\x7f\xff\xff\xff")


def with_segments(data, *segments):
    """A JPEG with further segments behind its JFIF segment."""
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"".join(segments) + data[end:]


@pytest.mark.parametrize(("orientation", "order"), [(each, "<>"[each % 2]) for each in range(1, 9)])
@pytest.mark.parametrize(
    "before",
    [(), (XMP,), (ICC, XMP, XMP), (segment(0xFE, b"a comment"), XMP)],
    ids=["first", "xmp", "icc and xmp", "comment"],
)
def test_exif_of_a_jpeg_wherever_it_stands(orientation, order, before):
    data = with_segments(encoded("JPEG", quality=95), *before, app1_exif(orientation, order))
    expected = pillow(data)
    close_to(decode_image(data), expected)
    large = with_segments(
        encoded("JPEG", PICTURE.resize((1200, 800)), quality=95), *before, app1_exif(orientation, order)
    )
    image, height, width = decode_for(large, 64, 64)
    assert (height, width) == pillow(large).shape[:2]
    assert image.shape[0] * 8 == height
    assert image.shape[1] * 8 == width


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        ((BROKEN, app1_exif(6)), 6),
        ((NO_ORIENTATION, app1_exif(8)), 8),
        ((app1_exif(6), app1_exif(3)), 6),
        ((app1_exif(1), app1_exif(6)), 1),
        ((app1_exif(9), XMP), 1),
        ((app1_exif(0),), 1),
        ((segment(0xE1, b"Exif\0\0"),), 1),
        ((segment(0xE1, b"Exif"),), 1),
        ((segment(0xE5, b"Exif\0\0" + exif(6)),), 1),
        ((BROKEN, XMP), 1),
    ],
)
def test_the_first_exif_that_states_an_orientation_counts(segments, orientation):
    plain = encoded("JPEG", quality=95)
    expected = pillow(with_segments(plain, app1_exif(orientation)))
    close_to(decode_image(with_segments(plain, *segments)), expected)


@pytest.mark.parametrize(("orientation", "order"), [(each, "<>"[each % 2]) for each in range(1, 9)])
@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
def test_exif_of_a_png(orientation, order, behind):
    data = encoded("PNG")
    place = len(data) - 12 if behind else 33
    data = data[:place] + corpus_valid.chunk(b"eXIf", exif(orientation, order)) + data[place:]
    np.testing.assert_array_equal(decode_image(data), pillow(data))


@pytest.mark.parametrize(("orientation", "order"), [(each, "<>"[each % 2]) for each in range(1, 9)])
@pytest.mark.parametrize("lossless", [False, True])
def test_exif_of_a_webp(orientation, order, lossless):
    data = encoded("WEBP", lossless=lossless, exif=exif(orientation, order))
    close_to(decode_image(data), pillow(data))


def tiff(pixels, bits=8, photometric=2, order="<", orientation=1, extra=()):
    """An uncompressed TIFF in one strip; ``extra`` replaces entries by tag."""
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    raw += bytes(len(raw) % 2)
    widths = struct.pack(f"{order}{samples}H", *[bits] * samples)
    entries = {
        256: (3, 1, pixels.shape[1]),
        257: (3, 1, pixels.shape[0]),
        258: (3, samples, 8 + len(raw) if samples > 2 else None),
        259: (3, 1, 1),
        262: (3, 1, photometric),
        273: (4, 1, 8),
        274: (3, 1, orientation),
        277: (3, 1, samples),
        278: (3, 1, pixels.shape[0]),
        279: (4, 1, pixels.nbytes),
    } | dict(extra)
    packed = b""
    for tag in sorted(entries):
        kind, count, value = entries[tag]
        body = widths[:4].ljust(4, b"\0") if value is None else struct.pack(f"{order}I", value)
        if value is not None and kind == 3 and count == 1:
            body = struct.pack(f"{order}HH", value, 0)
        packed += struct.pack(f"{order}HHI", tag, kind, count) + body
    start = ORDERS[order] + struct.pack(f"{order}I", 8 + len(raw) + len(widths))
    return start + raw + widths + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["RGB", "gray", "16-bit RGB", "16-bit gray", "lzw"])
def test_orientation_of_a_tiff(orientation, order, kind):
    expected = np.asarray(ImageOps.exif_transpose(with_orientation(PICTURE, orientation)))
    if kind == "lzw":
        data = encoded("TIFF", compression="tiff_lzw", exif=with_orientation(PICTURE, orientation).getexif())
    elif kind == "RGB":
        data = tiff(PIXELS, order=order, orientation=orientation)
    elif kind == "16-bit RGB":
        data = tiff(PIXELS.astype(np.uint16) * 257, 16, order=order, orientation=orientation)
    else:
        gray = PIXELS[..., 0].astype(np.uint16) * 257 if "16" in kind else PIXELS[..., 0]
        data = tiff(np.ascontiguousarray(gray), 16 if "16" in kind else 8, 1, order, orientation)
        expected = np.dstack([expected[..., 0]] * 3)
    np.testing.assert_array_equal(decode_image(data), expected)


def with_orientation(image, orientation):
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    return turned


WAYS = {
    "4:4:4": {"subsampling": 0},
    "4:2:0": {"subsampling": 2},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 1},
    "restarts by rows": {"restart_marker_rows": 1, "subsampling": 2},
    "progressive with restarts": {"progressive": True, "restart_marker_rows": 1},
    "gray": {},
    "cmyk": {},
    "thumbnail": {},
}


def jpeg(way):
    image = Image.fromarray(NOISE)
    if way in ("gray", "cmyk"):
        image = image.convert({"gray": "L", "cmyk": "CMYK"}[way])
    data = encoded("JPEG", image, quality=90, **WAYS[way])
    if way == "thumbnail":
        thumbnail = encoded("JPEG", PICTURE.resize((24, 16)))
        data = with_segments(data, segment(0xE1, b"Exif\0\0" + exif(1) + thumbnail))
    return data


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "end",
    [b"", b"\xff", b"\xff\xff\xff", bytes(5000), b"\xff" + bytes(3), b"SEFT trailer"],
    ids=["nothing", "half", "fill", "zeros", "half and zeros", "trailer"],
)
def test_a_whole_jpeg_without_its_end_marker(way, end):
    data = jpeg(way)
    assert data.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(decode_image(data[:-2] + end), decode_image(data))


@pytest.mark.parametrize("way", WAYS)
def test_a_truncated_jpeg_is_refused_wherever_it_is_cut(way):
    data = jpeg(way)
    first_scan = data.rfind(b"\xff\xda") if "progressive" not in way else data.find(b"\xff\xda")
    for place in np.linspace(first_scan + 20, len(data) - 12, 40).astype(int):
        for cut in (data[:place], data[:place] + bytes(100_000)):
            with pytest.raises(ImageError, match="truncated") as refused:
                decode_image(cut)
            assert refused.value.reason == "truncated"


@pytest.mark.parametrize("way", ["restarts", "restarts by rows", "progressive", "progressive with restarts"])
def test_a_jpeg_cut_between_its_parts_is_truncated(way):
    data = jpeg(way)
    first_scan = data.find(b"\xff\xda")
    markers = [b"\xff\xda", b"\xff\xc4"] if "progressive" in way else []
    markers += [bytes([0xFF, 0xD0 + number]) for number in range(8)] if "restarts" in way else []
    places = sorted(
        place for marker in markers for place in range(first_scan + 1, len(data)) if data[place : place + 2] == marker
    )
    assert len(places) > 2
    for place in places:
        for end in (0, 2):  # with and without the marker
            with pytest.raises(ImageError, match="truncated"):
                decode_image(data[: place + end])


def test_a_flat_jpeg_without_its_end_marker():
    for image in (Image.new("RGB", (640, 480), "teal"), Image.new("L", (640, 480), 255), Image.new("RGB", (8, 8))):
        data = encoded("JPEG", image)
        np.testing.assert_array_equal(decode_image(data[:-2]), decode_image(data))


def video():
    return struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + NOISE.tobytes() * 3


@pytest.mark.parametrize("way", ["4:2:0", "progressive", "restarts"])
@pytest.mark.parametrize("closed", [True, False], ids=["with end marker", "without"])
@pytest.mark.parametrize(
    "behind",
    [video(), encoded("JPEG", PICTURE.resize((48, 32))), bytes(4096), b"\xff\xd8\xff\xe1 cut off"],
    ids=["motion photo", "another picture", "zeros", "half a picture"],
)
def test_what_stands_behind_the_picture_does_not_matter(way, closed, behind):
    data = jpeg(way)
    data = with_segments(data, segment(0xE2, b"MPF\0" + tiff_block((0xB001, 4, 2))))
    np.testing.assert_array_equal(decode_image((data if closed else data[:-2]) + behind), decode_image(data))


def test_a_pair_of_pictures_is_its_first():
    data = encoded("MPO", Image.fromarray(NOISE), save_all=True, append_images=[PICTURE], quality=90)
    close_to(decode_image(data), pillow(data))


def patched(data, frame=None, bits=None, components=None, height=None):
    place = next(data.find(bytes([0xFF, marker])) for marker in (0xC0, 0xC2) if bytes([0xFF, marker]) in data)
    changed = bytearray(data)
    for offset, value in ((1, frame), (4, bits), (9, components)):
        if value is not None:
            changed[place + offset] = value
    if height is not None:
        changed[place + 5 : place + 7] = struct.pack(">H", height)
    return bytes(changed)


GRAY = np.ascontiguousarray(PIXELS[..., 0])
HALF = (PIXELS / 255).astype


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (patched(encoded("JPEG"), bits=12), "12-bit samples"),
        (patched(encoded("JPEG"), frame=0xC5), "hierarchical"),
        (patched(encoded("JPEG"), frame=0xCB), "lossless arithmetic coding"),
        (patched(encoded("JPEG"), frame=0xF7), "JPEG-LS"),
        (patched(encoded("JPEG"), components=2), "2 components"),
        (patched(encoded("JPEG"), height=0), "DNL"),
        (encoded("TIFF", Image.fromarray(GRAY.astype(np.float32))), "32-bit floating-point samples"),
        (encoded("TIFF", Image.fromarray(GRAY.astype(np.int32))), "32-bit signed samples"),
        (encoded("TIFF", compression="zstd"), "Zstandard compression"),
        (encoded("TIFF", compression="lzma"), "LZMA compression"),
        (tiff(GRAY, 8, 1, extra=[(259, (3, 1, 50001))]), "WebP compression"),
        (tiff(HALF(np.float16), 16, extra=[(339, (3, 1, 3))]), "16-bit floating-point samples"),
        (tiff(HALF(np.float64), 64, extra=[(339, (3, 1, 3))]), "64-bit floating-point samples"),
        (tiff(GRAY.astype(np.int16), 16, 1, extra=[(339, (3, 1, 2))]), "16-bit signed samples"),
        (tiff(GRAY.astype(np.int8), 8, 1, extra=[(339, (3, 1, 2))]), "8-bit signed samples"),
        (tiff(GRAY.astype(np.uint32), 32, 1), "32-bit samples"),
        (tiff(GRAY, 8, 32803), "sensor data"),
        (tiff(GRAY, 8, 1, extra=[(259, (3, 1, 6))]), "old-style JPEG compression"),
        (tiff(GRAY, 8, 1, extra=[(259, (3, 1, 34712))]), "JPEG 2000 compression"),
        (tiff(GRAY, 8, 1, extra=[(259, (3, 1, 999))]), "number 999 compression"),
        (tiff(GRAY[:, :48], 4, 1), "4-bit gray"),
        (encoded("TIFF", Image.fromarray(PIXELS).convert("LAB")), "8-bit CIELab"),  # libtiff is 19 levels off in red
        (tiff(np.dstack([PIXELS, GRAY, GRAY])), "8-bit RGB of 5 samples"),
        (tiff(np.dstack([PIXELS, GRAY]).astype(np.uint16), 16, 5), "16-bit CMYK"),
    ],
)
def test_an_intact_image_of_a_kind_that_cannot_be_decoded_is_not_called_damaged(data, what):
    with pytest.raises(ImageError, match=what) as refused:
        decode_image(data)
    assert "not supported" in str(refused.value)
    assert not any(word in str(refused.value) for word in ("damaged", "truncated", "whole file"))
    assert refused.value.reason == "format"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded("GIF"), "GIF"),
        (encoded("JPEG2000"), "JPEG 2000"),
        (encoded("AVIF"), "AVIF"),
        (encoded("PPM"), "Netpbm"),
        (encoded("ICO"), "ICO"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "a video"),
        # Each would be decoded as another format than its header says.
        (b"\xff\xd8" + segment(0xE5, b"ypavif" + bytes(26220)) + encoded("JPEG")[2:], "AVIF"),
        (encoded("BMP")[:4] + b"ftypisom" + encoded("BMP")[12:], "video"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "PSD"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI" + bytes(100), "CgBI"),
        (struct.pack("<2sIHHIIiiHHI", b"BM", 200, 0, 0, 54, 40, 8, 8, 1, 24, 4) + bytes(150), "a JPEG inside"),
    ],
)
def test_other_formats_are_named(data, name):
    with pytest.raises(ImageError, match=name) as refused:
        decode_image(data)
    assert "not supported" in str(refused.value)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"compression": "jpeg", "quality": 98}),
        ("L", {"compression": "jpeg", "quality": 98}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "packbits"}),
        ("RGB", {"big_tiff": True}),
        ("1", {"compression": "group4"}),
        ("1", {"compression": "group3"}),
        ("1", {}),
        ("P", {}),
        ("LA", {}),
        ("CMYK", {}),
    ],
)
def test_kinds_of_tiff(mode, options):
    data = encoded("TIFF", PICTURE.convert(mode), **options)
    expected = np.asarray(PICTURE.convert(mode).convert("L" if mode == "LA" else mode).convert("RGB"))
    close_to(decode_image(data), expected, 6 if "quality" in options else 1)


def test_black_level_of_sixteen_bit_tiff():
    wide = GRAY.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(tiff(wide, 16, 0))[..., 0], 255 - GRAY)
    np.testing.assert_array_equal(decode_image(tiff(wide, 16, 1))[..., 0], GRAY)


@pytest.mark.parametrize("held", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "png rgb", "png rgba", "tiff", "tiff rgb"])
def test_sixteen_bits_that_hold_fewer_are_scaled_by_what_they_hold(held, kind):
    full = PIXELS.copy()
    full[0, 0] = 255
    wide = full.astype(np.uint16) * 257 >> (16 - held)
    expected = full
    if "rgb" not in kind:
        wide = np.ascontiguousarray(wide[..., 0])
        expected = np.dstack([full[..., 0]] * 3)
    if "tiff" in kind:
        data = tiff(wide, 16, 2 if "rgb" in kind else 1)
    else:
        bgr = wide[..., ::-1] if wide.ndim == 3 else wide
        if kind == "png rgba":
            bgr = np.dstack([bgr, np.full(wide.shape[:2], (1 << held) - 1, np.uint16)])
        data = cv2.imencode(".png", bgr)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize(("width", "height"), [(8160, 6144), (8192, 6144), (9248, 6936)])
def test_what_phones_of_50_and_64_megapixels_take_is_inside_the_limit(width, height):
    _, header = check_image(patched_size(width, height), ImageLimits())
    assert (header.width, header.height) == (width, height)


def test_what_phones_of_108_megapixels_take_needs_a_higher_limit():
    data = patched_size(12000, 9000)
    with pytest.raises(ImageError, match="allowed: 67108864"):
        check_image(data, ImageLimits())
    assert check_image(data, ImageLimits(max_pixels=200_000_000))[1].width == 12000


def patched_size(width, height):
    data = encoded("JPEG")
    place = data.find(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]
