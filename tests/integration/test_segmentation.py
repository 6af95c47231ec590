"""The reference photographs through the real server: right boxes, right masks, the same answer every way."""

from __future__ import annotations

import asyncio
import functools
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from client.errors import RequestError
from client.retry import RetryPolicy
from client.segmentation import AsyncSegmentationClient, SegmentationClient
from pipeline import contract
from pipeline.images import decode_image
from tests.chaos.corpus_valid import encoded
from tests.integration import reference_masks

pytestmark = pytest.mark.server

MASK_IOU = {"fp32": 0.98, "fp16": 0.98, "int8": 0.93}
# In bfloat16 a side of a 1200-pixel picture is 0.8 off; the height of that card in fp32 is 2 off the authors' pixels.
BOX_PIXELS = {"fp32": 2, "fp16": 3, "int8": 10}


@pytest.fixture(scope="session")
def expected(reference):
    """Per photograph: the authors' boxes, and instances computed independently from the plain export."""
    boxes = reference_masks.authors_boxes(reference.expectations)
    return {path: (boxes[path.name], reference_masks.segment(reference.onnx, path)) for path in reference.photographs}


def same(one, other):
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.class_ids, other.class_ids)
    assert one.encoded_masks == other.encoded_masks
    assert one.image_size == other.image_size


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_photographs_single_and_batched(url, protocol, precision, expected):
    with SegmentationClient(url, protocol=protocol, precision=precision) as client:
        together = client.segment_batch(list(expected))
        assert len(together) == 5
        for (path, (boxes, instances)), batched in zip(expected.items(), together, strict=True):
            result = client.segment(path)
            same(result, batched)
            assert len(result) == len(boxes) == len(instances), path.name
            assert result.image_size == instances[0].mask.shape
            for x, y, width, height in boxes:  # cut to whole pixels by the model's authors
                found = [
                    np.abs(np.array([int(b[0]), int(b[1]), int(b[2] - b[0]), int(b[3] - b[1])]) - [x, y, width, height])
                    for b in result.boxes
                ]
                assert min(difference.max() for difference in found) <= BOX_PIXELS[precision], path.name
            for instance in instances:
                overlaps = [reference_masks.mask_iou(mask, instance.mask) for mask in result.masks]
                assert max(overlaps) >= MASK_IOU[precision], path.name


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_protocols_give_the_same_answer(server, precision, reference):
    with (
        SegmentationClient(server.grpc_url, protocol="grpc", precision=precision) as grpc,
        SegmentationClient(server.http_url, protocol="http", precision=precision) as http,
    ):
        for path in reference.photographs:
            same(grpc.segment(path), http.segment(path))


def test_classes_that_the_network_does_not_have_are_refused(url, protocol, reference):
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        assert len(client.segment(reference.photographs[0], classes=[0])) > 0
        with pytest.raises(RequestError, match="names 99, which the network does not have; allowed: 0"):
            client.segment(reference.photographs[0], classes=[0, 99])


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_images_without_a_card(url, protocol, precision):
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 255, 640).astype(np.uint8)[None, :, None] * np.ones((400, 1, 3), np.uint8)
    noise = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    disc = cv2.circle(np.full((480, 480, 3), 230, np.uint8), (240, 240), 120, (40, 90, 160), -1)
    with SegmentationClient(url, protocol=protocol, precision=precision) as client:
        for result in client.segment_batch([gradient, noise, disc]):
            assert len(result) == 0
            assert result.masks.shape[0] == 0


def upright(reference):
    return Image.fromarray(decode_image(reference.photographs[3].read_bytes()))


def behind_xmp(jpeg):
    body = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    end = jpeg.index(b"\xff\xe1")
    return jpeg[:end] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[end:]


ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # to be turned a quarter clockwise for display


@pytest.mark.parametrize(
    "make",
    [
        lambda image: encoded(image.convert("L"), "PNG"),
        lambda image: encoded(image.convert("RGBA"), "PNG"),
        lambda image: cv2.imencode(".png", np.asarray(image)[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        lambda image: encoded(image.convert("CMYK"), "JPEG", quality=95),
        lambda image: encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=ROTATED),
        lambda image: behind_xmp(encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=ROTATED)),
        lambda image: encoded(image, "JPEG", quality=95)[:-2],
        lambda image: encoded(image, "WEBP", quality=95),
        lambda image: encoded(image, "BMP"),
        lambda image: encoded(image, "TIFF"),
    ],
    ids=["grayscale", "rgba", "16-bit", "cmyk", "exif", "exif behind xmp", "no end marker", "webp", "bmp", "tiff"],
)
def test_kinds_of_images(url, protocol, make, reference):
    original = upright(reference)
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        plain = client.segment(reference.photographs[3])
        result = client.segment(make(original))
    assert result.image_size == (original.height, original.width)
    assert len(result) == 1
    assert np.abs(result.boxes - plain.boxes).max() < 12
    assert reference_masks.mask_iou(result.mask(0), plain.mask(0)) > 0.95


def test_smallest_and_large_images(url, protocol, reference):
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        tiny = client.segment(np.zeros((1, 1, 3), np.uint8))
        assert len(tiny) == 0
        assert tiny.image_size == (1, 1)
        large = upright(reference).resize((6000, 4000))
        result = client.segment(encoded(large, "JPEG", quality=90))
        assert result.image_size == (4000, 6000)
        assert len(result) == 1
        assert result.mask(0).shape == (4000, 6000)


def png_header(width, height):
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("data", "fault", "remedy"),
    [
        (b"", "empty", "send the bytes of an encoded image"),
        (b"certainly not an image", "not an image of an accepted format", "accepted: JPEG, PNG"),
        ("truncated", "truncated", "Send the whole file"),
        (png_header(60_000, 60_000), "60000x60000", "Send a smaller image"),
        (png_header(9_000, 9_000), "9000x9000", "Send a smaller image"),
    ],
    ids=["empty", "text", "truncated", "huge", "above-the-limit"],
)
def test_bad_images_are_refused(server, url, protocol, data, fault, remedy, reference):
    if data == "truncated":
        data = encoded(upright(reference), "JPEG")
        data = data[: len(data) * 2 // 3]
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        with pytest.raises(RequestError) as caught:
            client.segment(data)
        assert fault in str(caught.value)
        assert remedy in str(caught.value)
        assert server.is_ready()
        assert len(client.segment(reference.photographs[0])) == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"mask_format": "bitmap"}, ("mask_format", "bitmap", "rle, polygon, png, none")),
        ({"confidence": 2}, ("confidence", "2", "0 to 1")),
        ({"confidence": "high"}, ("confidence", "high", "0 to 1")),
        ({"max_detections": 0}, ("max_detections", "0", "1 to 1000")),
        ({"confidense": 0.5}, ("confidense", "allowed: classes, confidence")),
    ],
)
def test_bad_parameters_are_refused(server, url, protocol, parameters, words, reference):
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    # The plain Triton client: ours would not let some of these through.
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    with module.InferenceServerClient(url) as client:
        data = np.array([[reference.photographs[0].read_bytes()]], dtype=object)
        tensor = module.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(data)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("segment_fp32", [tensor], parameters=parameters)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    for word in words:
        assert word in caught.value.message()
    assert server.is_ready()


def test_nine_images_are_refused(server, url, protocol, reference):
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    with module.InferenceServerClient(url) as client:
        data = np.array([[reference.photographs[0].read_bytes()]] * 9, dtype=object)
        tensor = module.InferInput("image", [9, 1], "BYTES")
        tensor.set_data_from_numpy(data)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("segment_fp32", [tensor])
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert "batch-size must be <= 8" in caught.value.message()
    assert server.is_ready()


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_mask_formats_hold_the_same_mask(url, protocol, mask_format, reference):
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        rle = client.segment(reference.photographs[2])
        other = client.segment(reference.photographs[2], mask_format=mask_format)
    assert len(rle) == len(other) == 2
    for index in range(2):
        assert reference_masks.mask_iou(rle.mask(index), other.mask(index)) > 0.999


def test_parameters_reach_the_last_step(url, protocol, reference):
    with SegmentationClient(url, protocol=protocol, precision="fp32") as client:
        three = reference.photographs[1]
        assert len(client.segment(three)) == 3
        assert len(client.segment(three, max_detections=2)) == 2
        assert len(client.segment(three, confidence=0.95)) == 2
        assert len(client.segment(three, classes=[0])) == 3
        assert len(client.segment(three, iou=1.0)) > 3
        none = client.segment(three, mask_format="none")
        assert len(none) == 3
        assert set(none.encoded_masks) == {b""}


def test_one_broken_image_fails_its_request_alone(server, reference):
    """Many requests at once, so that the server batches them; every fourth one is broken."""
    photographs = reference.photographs
    outcomes: dict[int, object] = {}

    def ask(number: int) -> None:
        # So many at once may be more than a busy machine answers in time; they are admitted one after the other then.
        patient = RetryPolicy(retries=100)
        with SegmentationClient(server.grpc_url, protocol="grpc", precision="int8", retry=patient) as client:
            try:
                outcomes[number] = client.segment(b"broken" if number % 4 == 0 else photographs[number % 5])
            except RequestError as error:
                outcomes[number] = error

    with SegmentationClient(server.grpc_url, protocol="grpc", precision="int8") as client:
        alone = [client.segment(path) for path in photographs]
    threads = [threading.Thread(target=functools.partial(ask, number)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 32
    for number, outcome in outcomes.items():
        if number % 4 == 0:
            assert isinstance(outcome, RequestError)
        else:
            same(outcome, alone[number % 5])


def test_a_broken_image_in_a_request_is_named(url, protocol, reference):
    with (
        SegmentationClient(url, protocol=protocol, precision="fp32") as client,
        pytest.raises(RequestError, match="image 2 of 3"),
    ):
        client.segment_batch([reference.photographs[0], b"broken", reference.photographs[1]])


def test_class_names_come_from_the_server(url, protocol, reference):
    photograph = reference.photographs[2]
    with SegmentationClient(url, protocol) as client:
        assert client.class_names() == ("card",)
        found = client.segment(photograph, classes=["card"])
        assert [one.class_name for one in found] == ["card"] * len(found)
        assert len(found) == 2
        with pytest.raises(RequestError, match="names 'dog'; allowed: card, or their numbers from 0 to 0"):
            client.segment(photograph, classes=["dog"])

    async def ask():
        async with AsyncSegmentationClient(url, protocol) as client:
            results = await asyncio.gather(*(client.segment(photograph, classes=["card", 0]) for _ in range(3)))
            return [result.class_names for result in results]

    assert asyncio.run(ask()) == [("card",)] * 3
