import base64
import io
import resource
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.image_structure import exif_orientation, plain_png
from pipeline.images import ImageLimits, check_image, decode_image, read_header
from tests.chaos import corpus_valid
from tests.chaos.corpus_valid import chunk

PIXELS = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), (0, 0), 2)

HALF_SEEN = Image.fromarray(np.dstack([PIXELS, np.tile(np.arange(0, 240, 4, np.uint8), (40, 1))]))


def encoded(kind, image=None, **options):
    return corpus_valid.encoded(image or Image.fromarray(PIXELS), kind, **options)


def png(*chunks, width=60, height=40):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded("PNG"), 0),
        (encoded("BMP"), 0),
        (encoded("TIFF"), 0),
        (encoded("TIFF", compression="tiff_lzw"), 0),
        (encoded("WEBP", lossless=True), 0),
        (encoded("JPEG", quality=95), 4),
        *((encoded(kind, HALF_SEEN), 0) for kind in ("PNG", "TIFF")),
        (encoded("WEBP", HALF_SEEN, lossless=True, exact=True), 0),
        (encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK"), quality=95), 6),
    ],
)
def test_formats(data, tolerance):
    image = decode_image(data)
    assert image.dtype == np.uint8
    assert image.shape == PIXELS.shape
    assert np.abs(image.astype(int) - PIXELS).mean() <= tolerance


def test_grayscale_becomes_three_equal_channels():
    image = decode_image(encoded("PNG", Image.fromarray(PIXELS).convert("L")))
    assert image.shape == PIXELS.shape
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


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
        (png(width=60_000, height=60_000), "60000x60000"),
        (png(width=60_000, height=60_000)[:33], "60000x60000"),
        (png(width=60, height=40), "truncated|damaged"),
        (png(width=0, height=40), "damaged"),
        (png(width=9_000, height=9_000), "9000x9000"),
        (b"\xff\xd8\xff\xc0\0\x0b\x08\0@\0\1\4\x29`\x11\xff\xda" + bytes(27), "11 bytes for 4 components"),
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


def test_a_png_chunk_that_says_two_gigabytes_is_refused_before_room_is_made_for_it():
    whole = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    bomb = whole[:33] + struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + bytes(100) + b"IEND" + bytes(4)
    started = time.process_time()
    with pytest.raises(ImageError, match="truncated") as refused:
        decode_image(bomb)
    assert refused.value.reason == "truncated"
    assert time.process_time() - started < 0.1
    # What stands behind the last chunk does not matter.
    assert decode_image(whole + b"garbage").shape == (8, 8, 3)


def test_a_png_without_pixels_is_not_searched_for_them_behind_its_end():
    """OpenCV does so, and writes two gigabytes of zeros for a chunk that claims them."""
    whole = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    bomb = whole.replace(b"IDAT", b"IDAU") + struct.pack(">I", 0x7FFFFFF0) + b"tEXt" + bytes(100)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImageError, match="could not be decoded"):
        decode_image(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # in KB
    assert time.process_time() - started < 0.1
    assert plain_png(whole + b"garbage") == whole


def test_a_megabyte_of_fill_bytes_in_a_jpeg_takes_no_time():
    whole = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    filled = whole[:2] + b"\xff" * 1_000_000 + whole[2:]
    started = time.process_time()
    assert check_image(filled, ImageLimits())[1].width == 8
    for cut in (filled[:-10], whole[:2] + b"\xff" * 100):
        with pytest.raises(ImageError, match=r"truncated|without a frame"):
            check_image(cut, ImageLimits())
    assert time.process_time() - started < 0.1


ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)


def test_an_animated_png_is_its_default_image_whatever_its_animation_says():
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 0, 0, 9, 9))
    frame = chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(ROWS))
    picture = chunk(b"IDAT", zlib.compress(ROWS))
    for animation in (
        (chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), control, picture, control, frame),
        (control, control, picture),
        (picture, frame, chunk(b"fdAT", b"")),
    ):
        np.testing.assert_array_equal(decode_image(png(*animation)), PIXELS)
    frames = [Image.fromarray(PIXELS).rotate(180), Image.fromarray(PIXELS)]
    data = encoded("PNG", Image.fromarray(PIXELS), save_all=True, append_images=frames)
    np.testing.assert_array_equal(decode_image(data), PIXELS)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
def test_an_animated_webp_is_its_first_frame(options):
    frames = [Image.fromarray(PIXELS).rotate(180), Image.fromarray(PIXELS).rotate(90)]
    data = encoded("WEBP", Image.fromarray(PIXELS), save_all=True, append_images=frames, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
        np.testing.assert_array_equal(decode_image(data), animation.convert("RGB"))


def test_a_damaged_animated_webp_is_never_what_lay_in_memory_before():
    """OpenCV's own reader of animations gives that in some threads, or ends the process."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 4), np.uint8)
    frames = [Image.fromarray(pixels) for pixels in noise]
    whole = encoded("WEBP", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    start = whole.index(b"VP8L")
    damaged = whole[: start + 30] + bytes(40) + whole[start + 70 :]

    def look(_):
        try:
            return decode_image(damaged).tobytes()
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        (found,) = set(threads.map(look, range(80)))
    assert "could not be decoded" in found


def test_an_animated_webp_whose_first_frame_is_not_the_canvas_is_refused():
    data = bytearray(
        encoded("WEBP", Image.fromarray(PIXELS), save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    )
    data[24] += 4  # of the canvas' width
    with pytest.raises(
        ImageError, match="first frame of the animated WebP has 60x40 pixels, the canvas 64x40; allowed"
    ):
        decode_image(bytes(data))
    data[20 + 10 :] = b""
    data[4:8] = struct.pack("<I", len(data) - 8)
    with pytest.raises(ImageError, match="animated WebP has no whole first frame"):
        decode_image(bytes(data))


def test_pixel_data_behind_the_last_pixel_is_refused_before_it_is_inflated():
    packer = zlib.compressobj(1)
    block = packer.compress(ROWS)
    bomb = block + b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    started = time.process_time()
    with pytest.raises(ImageError, match="more pixel data than 60x40 pixels need"):
        decode_image(png(chunk(b"IDAT", bomb)))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_large_pngs_of_every_kind_are_not_taken_for_bombs(mode):
    noise = np.random.default_rng(1).integers(0, 256, (800, 700, 4), np.uint8)
    image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise)
    image = image if mode == "I;16" else image.convert("RGB").quantize() if mode == "P" else image.convert(mode)
    data = encoded("PNG", image)
    assert len(data) > 512 * 1024
    assert decode_image(data).shape == (800, 700, 3)


def test_a_png_whose_pixels_are_one_chunk_of_megabytes():
    pixels = np.random.default_rng(2).integers(0, 256, (1500, 2000, 3), np.uint8)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 0)
    data = png(chunk(b"tEXt", b"a\0" + bytes(9_000_000)), chunk(b"IDAT", packed), width=2000, height=1500)
    assert len(packed) > 8_000_000
    np.testing.assert_array_equal(decode_image(data), pixels)


def test_a_png_of_too_many_chunks_is_refused():
    with pytest.raises(ImageError, match="more than 100000 chunks"):
        decode_image(png(chunk(b"tEXt", b"a\0b") * 100_001, chunk(b"IDAT", zlib.compress(ROWS))))


def scans(count, width=3000, height=2000, thumbnail=b""):
    gray = encoded("JPEG", Image.new("L", (width, height), 90), progressive=True, quality=50)
    last = gray.rfind(b"\xff\xda")
    return gray[:2] + thumbnail + gray[2:last] + gray[last:-2] * count + gray[-2:]


def test_more_scans_than_a_jpeg_of_its_size_can_need_are_refused():
    data = scans(2000)
    started = time.process_time()
    with pytest.raises(ImageError, match="3000x2000 pixels has more than 223 scans"):
        decode_image(data)
    assert time.process_time() - started < 0.2
    assert decode_image(scans(30)).shape == (2000, 3000, 3)


def test_scans_are_not_confused_with_thumbnails_comments_and_what_follows():
    thumbnails = b"".join(b"\xff\xe9" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000 for _ in range(3))
    data = scans(1, thumbnail=thumbnails) + b"\xff\xda" * 5000
    assert decode_image(data).shape == (2000, 3000, 3)
    # An end-of-image marker in a comment between scans does not hide those after it.
    comment = b"\xff\xfe\0\4\xff\xd9"
    gray = scans(2000)
    place = gray.find(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        decode_image(gray[:place] + comment + gray[place:])
    with pytest.raises(ImageError, match="more than 10000 segments"):
        decode_image(gray[:2] + b"\xff\xfe\0\2" * 10_001 + gray[2:])


def directory(entries, data=b"", order="<"):
    start = b"II*\0" if order == "<" else b"MM\0*"
    packed = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return start + struct.pack(f"{order}I", 8 + len(data)) + data + struct.pack(f"{order}H", len(entries)) + packed


def test_a_tiff_whose_entries_all_point_to_the_same_megabytes_is_refused():
    filler = bytes(2_000_000)
    layout = [(256, 4, 1, 40), (257, 4, 1, 40), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, 8)]
    layout += [(277, 4, 1, 1), (278, 4, 1, 40), (279, 4, 1, 1600)]
    bomb = directory([*layout, *((30_000 + tag, 1, 1_990_000, 8) for tag in range(1000))], filler)
    started = time.process_time()
    with pytest.raises(ImageError, match="hold more than the"):
        decode_image(bomb)
    assert time.process_time() - started < 0.2
    assert decode_image(directory(layout, filler)).shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([], "does not say how large"),
        ([(256, 4, 1, 60_000), (257, 4, 1, 60_000)], "60000x60000"),
        ([(256, 4, 1, 64), (257, 4, 1, 64), (256, 4, 1, 60_000), (257, 4, 1, 60_000)], "60000x60000"),
        ([(256, 4, 1, 0), (257, 4, 1, 64)], "damaged"),
        ([(256, 4, 1, 64), (257, 4, 1, 64), (322, 4, 1, 30_000), (323, 4, 1, 30_000)], "tiles of 900000000 pixels"),
        ([(tag, 3, 1, 1) for tag in range(5000)], "5000 entries; allowed: 4096"),
    ],
)
def test_tiff_directories_that_are_refused(entries, fault):
    with pytest.raises(ImageError, match=fault):
        decode_image(directory(entries))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "count", "value", "expected"),
    [(3, 1, 6, 6), (4, 1, 6, 6), (3, 1, 0, 0), (3, 1, 9, 0), (3, 2**32 - 1, 6, 0), (5, 1, 6, 0), (999, 1, 6, 0)],
)
def test_orientation_of_an_exif_block(order, kind, count, value, expected):
    entry = (0x0112, kind, count, value << 16 if kind == 3 and order == ">" else value)
    assert exif_orientation(directory([entry], order=order)) == expected


@pytest.mark.parametrize(
    "block", [b"", b"II", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xe8\xfd"]
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_broken_exif_does_not_cost_the_image(kind, block):
    large = Image.fromarray(PIXELS).resize((1500, 1400))
    if kind == "JPEG":
        data = encoded(kind, large)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + data[2:]
    elif kind == "WEBP":
        data = encoded(kind, large, exif=b"Exif\0\0" + directory([(0x0112, 3, 1, 6)]))
        data = data.replace(directory([(0x0112, 3, 1, 6)]), block.ljust(22, b"\0")[:22])
    else:
        data = png(chunk(b"eXIf", block), chunk(b"IDAT", zlib.compress(ROWS)))
        assert decode_image(data).shape == PIXELS.shape
        return
    assert decode_image(data).shape == (1400, 1500, 3)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "WEBP", "BMP", "TIFF") for mode in ("RGB", "L", "RGBA", "P", "1")]
    + [(kind, mode) for kind in ("JPEG", "MPO") for mode in ("RGB", "L", "CMYK")],
)
def test_headers_agree_with_another_reader(kind, mode):
    data = encoded(kind, Image.fromarray(PIXELS).convert(mode))
    header = read_header(data)
    with Image.open(io.BytesIO(data)) as other:
        assert (header.width, header.height) == other.size
        assert header.format == {"MPO": "JPEG"}.get(other.format, other.format)


@pytest.mark.parametrize(
    "data",
    [
        *(
            start + filler * length
            for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP", b"BM", b"II*\0")
            for filler in (b"\0", b"\xff")
            for length in (0, 1, 9, 40)
        ),
        b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(30),
        b"MM\0+\0\x08\0\0" + b"\x7f" + b"\xff" * 7 + bytes(30),
    ],
)
def test_beginnings_without_an_image_are_refused(data):
    with pytest.raises(ImageError):
        decode_image(data)


def bmp_with_masks(red, green, blue, header_bytes):
    shifts = [(mask & -mask).bit_length() - 1 for mask in (red, green, blue)]
    pixels = sum(PIXELS[::-1, :, channel].astype("<u4") << shift for channel, shift in enumerate(shifts)).tobytes()
    info = struct.pack("<IiiHHIIiiII", header_bytes, 60, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    info += struct.pack("<IIII", red, green, blue, 0).ljust(max(header_bytes - 40, 12), b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


@pytest.mark.parametrize(
    ("masks", "header_bytes"),
    [
        ((0xFF0000, 0xFF00, 0xFF), 40),
        ((0xFF0000, 0xFF00, 0xFF), 124),
        ((0xFF, 0xFF00, 0xFF0000), 124),
        ((0xFF000000, 0xFF0000, 0xFF00), 56),
    ],
)
def test_color_masks_of_a_bmp(masks, header_bytes):
    np.testing.assert_array_equal(decode_image(bmp_with_masks(*masks, header_bytes)), PIXELS)


@pytest.mark.parametrize(
    ("masks", "header_bytes"),
    [((0xFF000000, 0xFF00, 0xFF), 52), ((0xFF000000, 0xFF0, 0xFF0000), 124), ((0xFF, 0xFF00, 0xFF0000), 40)],
)
def test_color_masks_that_would_be_decoded_wrongly_are_refused(masks, header_bytes):
    with pytest.raises(ImageError, match="color masks"):
        decode_image(bmp_with_masks(*masks, header_bytes))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("wrapped", [b"%s", b"data:image/jpeg;base64,%s", b'"%s"', b"\n %s\n"])
def test_base64_text_is_recognized(kind, wrapped):
    data = encoded(kind)
    for text in (base64.b64encode(data), base64.encodebytes(data), base64.urlsafe_b64encode(data)):
        expected = r"the image is (base64 text|a data: URI), \d+ characters; allowed: the file"
        with pytest.raises(ImageError, match=expected) as no:
            decode_image(wrapped % text)
        assert "binary data extension" in str(no.value)
        assert no.value.reason == "format"


@pytest.mark.parametrize(
    "text", [b"this is text, not an image", b"AAAA" * 40, b"/9j/", b"hello", b"R0lGODlhAQABAAAAACw="]
)
def test_other_text_is_no_base64_of_an_image(text):
    with pytest.raises(ImageError) as no:
        decode_image(text)
    assert "base64 text" not in str(no.value) or text == b"/9j/"
