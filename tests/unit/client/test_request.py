"""What is sent, and what is made of the answer."""

import numpy as np
import pytest

from client.errors import RequestError, ServerError
from client.images import encode_pixels, encoded_image
from client.request import Request, parameters_of, parse_response
from pipeline.decode_work import REQUEST_DECODE_S
from pipeline.postprocess import ImageSegmentation, pack_response


def test_parameters_left_out_are_not_sent():
    assert parameters_of() == {}
    assert parameters_of(iou=0.5, classes=None) == {"iou": 0.5}


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="unknown option colour; allowed: confidence, iou"):
        parameters_of(colour="red")


@pytest.mark.parametrize(
    "given",
    [
        {"confidence": "high"},
        {"confidence": True},
        {"iou": [0.5]},
        {"max_detections": 2.5},
        {"max_detections": True},
        {"classes": [0.5]},
        {"classes": "0,2"},
    ],
)
def test_parameters_of_another_type_are_refused_by_name(given):
    with pytest.raises(RequestError, match=next(iter(given))):
        parameters_of(**given)


def test_jpeg_of_a_quality():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    low, high = encode_pixels(pixels, jpeg_quality=20), encode_pixels(pixels, jpeg_quality=95)
    assert low[:3] == high[:3] == b"\xff\xd8\xff"
    assert len(low) < len(high)
    with pytest.raises(RequestError, match="1 to 100"):
        encode_pixels(pixels, jpeg_quality=0)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(RequestError, match=r"uint8 \[height, width, 3\] RGB"):
        encoded_image(pixels)


def test_what_is_no_image_is_refused():
    with pytest.raises(RequestError, match="NoneType"):
        encoded_image(None)


@pytest.fixture(scope="module")
def png_of_24_megapixels():
    return encode_pixels(np.full((4000, 6000), 100, np.uint8))  # 0.4 s by estimate


def test_large_images_go_in_several_requests(png_of_24_megapixels):
    large, small = png_of_24_megapixels, b"x"
    requests = Request.cut([small, large, large, large, large, small, small], {"iou": 0.5})
    assert [request.images for request in requests] == [(small, large, large, large), (large, small, small)]
    assert all(0 < request.decode_s <= REQUEST_DECODE_S and request.parameters == {"iou": 0.5} for request in requests)
    assert requests[0].names[1] == f"image of {len(large)} bytes"


def test_a_request_has_a_bounded_number_of_bytes():
    heavy, light = b"x" * (40 * 1024 * 1024), b"x"
    cut = [request.images for request in Request.cut([heavy, light, heavy, light], {})]
    assert cut == [(heavy, light), (heavy, light)]


@pytest.mark.parametrize(("images", "sizes"), [(0, []), (1, [1]), (8, [8]), (9, [8, 1])])
def test_small_images_go_in_one_request(images, sizes):
    assert [len(request.images) for request in Request.cut([b"x"] * images, {})] == sizes


def test_an_image_that_is_too_large_for_a_request_of_several_goes_alone(monkeypatch):
    monkeypatch.setattr("client.request.decode_seconds", lambda data: 3.0 if data == b"large" else 0.1)
    cut = [request.images for request in Request.cut([b"a", b"large", b"b", b"large", b"large"], {})]
    assert cut == [(b"a",), (b"large",), (b"b",), (b"large",), (b"large",)]


def image_segmentation(n, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return ImageSegmentation(
        boxes=rng.random((n, 4), np.float32),
        scores=np.sort(rng.random(n, np.float32))[::-1],
        class_ids=rng.integers(0, 5, n).astype(np.int32),
        masks=[b"mask %d" % index for index in range(n)],
        height=height,
        width=width,
    )


def test_padding_is_cut_off():
    images = [image_segmentation(n, 10 + n, 20 + n, seed=n) for n in (2, 0, 5)]
    results = parse_response(pack_response(images), 3, "rle")
    assert [len(result) for result in results] == [2, 0, 5]
    for image, result in zip(images, results, strict=True):
        assert np.array_equal(result.boxes, image.boxes)
        assert np.array_equal(result.scores, image.scores)
        assert np.array_equal(result.class_ids, image.class_ids)
        assert result.encoded_masks == tuple(image.masks)
        assert result.image_size == (image.height, image.width)
        assert (result.boxes.dtype, result.scores.dtype, result.class_ids.dtype) == (np.float32, np.float32, np.int32)


def test_results_do_not_hang_on_the_response():
    tensors = pack_response([image_segmentation(2, 4, 4)])
    for array in tensors.values():
        array.setflags(write=False)
    (result,) = parse_response(tensors, 1, "rle")
    result.boxes[0] = 0
    assert result.boxes.base is None


def test_mask_format_follows_the_request():
    tensors = pack_response([image_segmentation(1, 4, 4)])
    assert Request((b"x",), ("x",), {}).parse(tensors)[0].mask_format == "rle"
    assert Request((b"x",), ("x",), {"mask_format": "png"}).parse(tensors)[0].mask_format == "png"


def test_answers_of_another_model_are_refused():
    tensors = pack_response([image_segmentation(2, 4, 4)])
    with pytest.raises(ServerError, match="'masks'"):
        parse_response({name: array for name, array in tensors.items() if name != "masks"}, 1, "rle")
    with pytest.raises(ServerError, match=r"'boxes' has shape \[1, 2, 5\]; expected \[1, -1, 4\]"):
        parse_response({**tensors, "boxes": np.zeros((1, 2, 5), np.float32)}, 1, "rle")
    with pytest.raises(ServerError, match="expected \\[2"):
        parse_response(tensors, 2, "rle")
    with pytest.raises(ServerError, match="num_detections says \\[3\\] where 2"):
        parse_response({**tensors, "num_detections": np.array([[3]], np.int32)}, 1, "rle")


def test_a_refusal_names_the_images():
    one = Request((b"x",), ("a.jpg",), {}).named(RequestError("bad", "400"))
    assert (str(one), one.status) == ("a.jpg: bad", "400")
    two = Request((b"x", b"y"), ("a.jpg", "b.jpg"), {}).named(RequestError("image 2 of 2: bad"))
    assert str(two) == "2 images (a.jpg, b.jpg): image 2 of 2: bad"
