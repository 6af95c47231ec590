import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.errors import ImageError
from pipeline.images import ImageLimits, decode_image, read_header

PIXELS = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), (0, 0), 2)


def encoded(kind, image=None, **options):
    stream = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(stream, kind, **options)
    return stream.getvalue()


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded("PNG"), 0),
        (encoded("BMP"), 0),
        (encoded("TIFF"), 0),
        (encoded("TIFF", compression="tiff_lzw"), 0),
        (encoded("WEBP", lossless=True), 0),
        (encoded("JPEG", quality=95), 4),
        (encoded("PNG", Image.fromarray(PIXELS).convert("RGBA")), 0),
        (encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK"), quality=95), 6),
    ],
)
def test_formats(data, tolerance):
    image = decode_image(data)
    assert image.dtype == np.uint8
    assert image.shape == PIXELS.shape
    assert np.abs(image.astype(int) - PIXELS).mean() <= tolerance


def test_greyscale_becomes_three_equal_channels():
    image = decode_image(encoded("PNG", Image.fromarray(PIXELS).convert("L")))
    assert image.shape == PIXELS.shape
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_sixteen_bits_become_eight():
    ok, data = cv2.imencode(".png", PIXELS[..., ::-1].astype(np.uint16) * 257)
    assert ok
    np.testing.assert_array_equal(decode_image(data.tobytes()), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = decode_image(data)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (b"this is text, not an image", "not an image of an accepted format"),
        (encoded("JPEG")[:-200], "truncated"),
        (encoded("JPEG", exif=Image.Exif())[: len(encoded("JPEG")) // 2], "(?i)truncated"),
        (encoded("PNG")[:-30], "truncated"),
        (encoded("WEBP")[:-60], "not an image|truncated"),
        (encoded("BMP")[:-2000], "truncated"),
        (encoded("TIFF")[:-2000], "not an image|truncated"),
        (encoded("GIF"), "not an image of an accepted format"),
        (png_that_claims(60_000, 60_000), "60000x60000"),
        (png_that_claims(60_000, 60_000)[:33], "60000x60000"),
        (png_that_claims(60, 40), "truncated|damaged"),
        (png_that_claims(0, 40), "damaged"),
        (png_that_claims(9_000, 9_000), "9000x9000"),
    ],
)
def test_refusals_name_the_fault(data, fault):
    with pytest.raises(ImageError, match=fault):
        decode_image(data)


def test_a_thumbnail_does_not_hide_a_truncated_jpeg():
    exif = Image.Exif()
    whole = encoded("JPEG", quality=95, exif=exif)
    thumbnail = encoded("JPEG", Image.fromarray(PIXELS).resize((8, 8)))
    segment = b"\xff\xe9" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + segment + whole[2:]
    assert decode_image(data).shape == PIXELS.shape
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[:-100])


def test_limits_can_be_set():
    with pytest.raises(ImageError, match=r"60x40 pixels, 2400 in all; allowed: 2399"):
        decode_image(encoded("PNG"), ImageLimits(max_pixels=2399))
    with pytest.raises(ImageError, match="allowed: 100"):
        decode_image(encoded("PNG"), ImageLimits(max_bytes=100))


def test_header_of_a_whole_image():
    header = read_header(encoded("JPEG"))
    assert (header.format, header.width, header.height) == ("JPEG", 60, 40)
