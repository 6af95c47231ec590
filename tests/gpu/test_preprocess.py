"""Decoding and letterboxing: kernels and decode engines against :func:`pipeline.preprocess.preprocess`."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images import ImageLimits, decode_image
from pipeline.letterbox import Geometry, letterbox
from pipeline.preprocess import preprocess
from steps.gpu import preprocess as gpu_preprocess
from steps.gpu.preprocess import GpuPreprocess
from tests.gpu.conftest import HostDecoder

SHAPE = (96, 128, 3)


def picture(height, width, seed=0):
    """Smooth colors with edges, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 3 * index) + seed) + np.cos(y / (9 + 2 * index)) for index in range(3)]
    image = (np.stack(waves, 2) * 50 + 128).astype(np.uint8)
    for _ in range(6):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(image, center, max(2, min(height, width) // 8), rng.integers(0, 256, 3).tolist(), -1)
    return image


def jpeg(image, orientation=1, **options):
    flags = [item for name, value in options.items() for item in (getattr(cv2, f"IMWRITE_JPEG_{name}"), value)]
    data = cv2.imencode(".jpg", image, flags)[1].tobytes()
    if orientation == 1:
        return data
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + b"\0\0\0\0"
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def webp(image):
    return cv2.imencode(".webp", image)[1].tobytes()


def run(device, decoder, get, encoded, limits=None, times=1, *, stretch=False):
    step = GpuPreprocess(device, decoder, SHAPE, len(encoded), ThreadPoolExecutor(2), limits, stretch=stretch)
    pixels = device.memory(len(encoded) * int(np.prod(SHAPE)))
    for _ in range(times):
        device.wait()
        step.images[:] = 0
        examined = [examine(step, data) for data in encoded]
        kept = [one for one in examined if not isinstance(one, ImageError)]
        decoded = dict(
            zip((index for index, one in enumerate(examined) if one in kept), step.run(kept, pixels), strict=True)
        )
    rows = iter(get(pixels, (len(encoded), *SHAPE)))
    results = [decoded.get(index, one) for index, one in enumerate(examined)]
    return results, [next(rows) if index in decoded else None for index in range(len(encoded))]


def examine(step, data):
    try:
        return step.examine(data)
    except ImageError as error:
        return error


def expected(data, limits=None, *, stretch=False):
    out = np.empty(SHAPE, np.uint8)
    return preprocess(data, out, limits, stretch=stretch), out


def check_close(found, wanted):
    difference = np.abs(found.astype(int) - wanted)
    assert difference.mean() <= 1.0
    assert np.percentile(difference, 99) <= 12


@pytest.mark.parametrize(
    "size", [(96, 128), (48, 64), (100, 141), (160, 200), (300, 500), (700, 301), (20, 900), (17, 23)]
)
def test_letterbox(device, decoder, get, size):
    """Against the whole picture, which the CPU decodes at a fraction of its size where that is enough."""
    data = jpeg(picture(*size), QUALITY=95)
    (geometry,), (pixels,) = run(device, decoder, get, [data])
    wanted = np.empty(SHAPE, np.uint8)
    assert geometry == letterbox(decode_image(data), wanted)
    check_close(pixels, wanted)


@pytest.mark.parametrize("size", [(96, 128), (300, 500), (700, 301), (20, 900), (500, 60), (17, 23)])
def test_stretched(device, decoder, get, size):
    """Also where one side shrinks and the other one grows."""
    image = picture(*size)
    encoded = [jpeg(image, QUALITY=95), png(image)]
    results, pixels = run(device, decoder, get, encoded, stretch=True)
    for result, found, data in zip(results, pixels, encoded, strict=True):
        wanted = np.empty(SHAPE, np.uint8)
        assert result == Geometry.fit(*size, *SHAPE[:2], stretch=True)
        letterbox(decode_image(data), wanted, result)
        check_close(found, wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(device, decoder, get, orientation):
    data = jpeg(picture(200, 310), orientation, QUALITY=95)
    (geometry,), (pixels,) = run(device, decoder, get, [data])
    wanted_geometry, wanted = expected(data)
    assert geometry == wanted_geometry
    check_close(pixels, wanted)


def test_subsampling_and_gray(device, decoder, get):
    image = picture(200, 310)
    factors = [getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("420", "422", "444", "440", "411")]
    encoded = [jpeg(image, QUALITY=95, SAMPLING_FACTOR=factor) for factor in factors]
    encoded.append(jpeg(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), QUALITY=95))
    encoded.append(jpeg(image, QUALITY=90, RST_INTERVAL=8))
    _, pixels = run(device, decoder, get, encoded)
    for found, data in zip(pixels, encoded, strict=True):
        check_close(found, expected(data)[1])


def test_mixed_batch_one_bad_image_fails_alone(device, decoder, get):
    """What the engines do not take has the CPU's very pixels; what is refused has its text."""
    image = picture(240, 320)
    whole = jpeg(image)
    encoded = [
        jpeg(image, QUALITY=95),
        png(image),
        whole[: len(whole) // 2],
        jpeg(image, PROGRESSIVE=1),
        b"no image",
        webp(image),
        b"",
        png(picture(2000, 2000)),
        jpeg(picture(2000, 2000)),
        jpeg(image, 6, QUALITY=95),
    ]
    limits = ImageLimits(max_pixels=1_000_000)
    results, pixels = run(device, decoder, get, encoded, limits, times=2)
    for result, found, data in zip(results, pixels, encoded, strict=True):
        try:
            geometry, wanted = expected(data, limits)
        except ImageError as error:
            assert isinstance(result, ImageError)
            assert (str(result), result.reason) == (str(error), error.reason)
        else:
            assert result == geometry
            if data in (encoded[0], encoded[9]):
                check_close(found, wanted)
            else:
                np.testing.assert_array_equal(found, wanted)


def test_damaged_data_has_the_answer_of_the_cpu_or_one_that_ends(device, decoder, get):
    """Bits are flipped behind the header; the engines may see it, and the CPU then decodes what is left."""
    whole = jpeg(picture(240, 320))
    rng = np.random.default_rng(3)
    encoded = []
    for _ in range(32):
        data = bytearray(whole)
        for place in rng.integers(700, len(data) - 2, 5):
            data[place] ^= 1 << int(rng.integers(8))
        encoded.append(bytes(data))
    results, _ = run(device, decoder, get, encoded)
    for result, data in zip(results, encoded, strict=True):
        try:
            wanted = expected(data)[0]
        except ImageError as error:
            assert str(result) == str(error)
        else:
            assert isinstance(result, Geometry)
            assert result == wanted


def test_large_batch_is_decoded_in_parts(device, decoder, get, monkeypatch):
    monkeypatch.setattr(gpu_preprocess, "_PIXELS_AT_ONCE", 150_000)
    encoded = [jpeg(picture(240, 320, seed), QUALITY=95) for seed in range(5)]
    results, pixels = run(device, decoder, get, encoded)
    for result, found, data in zip(results, pixels, encoded, strict=True):
        geometry, wanted = expected(data)
        assert result == geometry
        check_close(found, wanted)
    if isinstance(decoder, HostDecoder):
        assert decoder.calls == [1] * 5


def test_what_the_decoder_refuses_is_decoded_by_the_cpu(device, get):
    encoded = [jpeg(picture(240, 320, seed)) for seed in range(3)]
    results, pixels = run(device, Refusing(), get, encoded)
    for result, found, data in zip(results, pixels, encoded, strict=True):
        geometry, wanted = expected(data)
        assert result == geometry
        np.testing.assert_array_equal(found, wanted)


class Refusing:
    def decode(self, encoded):
        return [None] * len(encoded)
