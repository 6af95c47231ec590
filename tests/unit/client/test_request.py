"""What is sent, and what is made of the answer."""

import numpy as np
import pytest

from client.errors import AnswerError, RequestError, ServerError
from client.images import encode_pixels, encoded_image
from client.request import Request, parameters_of, parse_response
from pipeline import contract, rle
from pipeline.decode_work import REQUEST_DECODE_S
from pipeline.mask_formats import encode_masks
from pipeline.masks import MaskRuns
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
        boxes=np.sort(rng.random((n, 2, 2), np.float32), axis=1).reshape(n, 4),
        scores=np.sort(rng.random(n, np.float32))[::-1],
        class_ids=rng.integers(0, 5, n).astype(np.int32),
        masks=[rle.encode(rng.random((height, width)) > 0.5) for _ in range(n)],
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
    tensors["masks"][0, 0] = encode_masks([MaskRuns.from_image(np.ones((4, 4)))], "png")[0]
    assert Request((b"x",), ("x",), {"mask_format": "png"}).parse(tensors)[0].mask_format == "png"


def test_answers_of_another_model_are_refused():
    tensors = pack_response([image_segmentation(2, 4, 4)])
    assert issubclass(AnswerError, ServerError)
    with pytest.raises(AnswerError, match="'masks'"):
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


HEIGHT, WIDTH = 12, 16
MASK = np.zeros((HEIGHT, WIDTH), np.bool_)
MASK[2:7, 3:9] = True


def answer(mask_format="rle", **changes):
    """The right tensors for one image with two detections, but for the changes: of elements, or of whole tensors."""
    masks = encode_masks([MaskRuns.from_image(MASK)] * 2, mask_format)
    boxes = np.array([[3, 2, 9, 7], [3, 2, 9, 7]], np.float32)
    found = ImageSegmentation(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 3], np.int32), masks, HEIGHT, WIDTH)
    tensors = pack_response([found])
    for name, change in changes.items():
        if isinstance(change, np.ndarray):
            tensors[name] = change
        else:
            tensors[name][0, 0] = change
    return tensors


@pytest.mark.parametrize("mask_format", contract.MASK_FORMATS)
def test_a_right_answer_is_accepted(mask_format):
    request = Request((encode_pixels(np.zeros((HEIGHT, WIDTH), np.uint8)),), ("x",), {"mask_format": mask_format})
    (result,) = request.parse(answer(mask_format))
    assert mask_format == "none" or np.array_equal(result.masks, [MASK, MASK])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"boxes": [3, 2, np.inf, 7]}, "box"),
        ({"boxes": [-np.inf, 2, 9, 7]}, "box"),
        ({"boxes": [3, np.nan, 9, 7]}, "box"),
        ({"boxes": [3, 2, 1e30, 7]}, "box"),
        ({"boxes": [9, 2, 3, 7]}, "box"),
        ({"scores": np.nan}, "scores"),
        ({"scores": 1.5}, "scores"),
        ({"scores": 0.1}, "scores"),
        ({"scores": np.array([[0.5, np.nan]], np.float32)}, "scores"),
        ({"scores": np.array([[0.5, -0.5]], np.float32)}, "scores"),
        ({"class_ids": -1}, "class"),
        ({"class_ids": 2**31 - 1}, "class"),
        ({"class_ids": np.array([[0.0, 1.0]], np.float32)}, "type float32; expected INT32"),
        ({"boxes": np.zeros((1, 2, 4))}, "type float64; expected FP32"),
        ({"masks": np.zeros((1, 2), np.int32)}, "type int32; expected BYTES"),
        ({"masks": np.array([["06", "06"]])}, "expected BYTES"),
        ({"num_detections": np.zeros((1,), np.int32)}, "shape"),
        ({"num_detections": -1}, "num_detections"),
        ({"image_size": np.full((1, 2), 2**31 - 1, np.int32)}, "image_size"),
        ({"image_size": np.array([[0, 0]], np.int32)}, "image_size"),
        ({"masks": 5}, "bytes"),
        ({"masks": "06"}, "bytes"),
        ({"masks": None}, "bytes"),
        ({"masks": b""}, "mask 0"),
        ({"masks": b"\xff"}, "mask 0"),
        ({"masks": b"06"}, "mask 0"),
        ({"masks": b"zzzzzzzzzzzz0"}, "mask 0"),
        ({"masks": b"P"}, "mask 0"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_wrong_answers_are_server_errors(changes, fault, known):
    image = encode_pixels(np.zeros((HEIGHT, WIDTH), np.uint8)) if known else b"x"
    with pytest.raises(AnswerError, match=fault):
        Request((image,), ("x",), {}).parse(answer(**changes))


@pytest.mark.parametrize(
    ("mask_format", "mask"),
    [
        ("polygon", b"5"),
        ("polygon", b""),
        ("polygon", b"{}"),
        ("polygon", b"[[NaN,0]]"),
        ("polygon", b"[" * 100_000 + b"]" * 100_000),
        ("png", b""),
        ("png", b"\xff\xd8\xff\xe0 a JPEG instead of the PNG, 33 bytes"),
        ("png", encode_pixels(np.zeros((HEIGHT + 1, WIDTH), np.uint8))),
        ("png_base64", b"!" * 60),
        ("png_base64", b"iVBO"),
    ],
)
def test_masks_of_another_kind_are_server_errors(mask_format, mask):
    with pytest.raises(AnswerError, match="image 1 of 1 is wrong: mask 0"):
        parse_response(answer(mask_format, masks=mask), 1, mask_format)


def test_more_detections_than_may_be_asked_for_are_a_server_error():
    many = contract.DEFAULT_TOP_K + 1
    found = ImageSegmentation(np.zeros((many, 4)), np.zeros(many), np.zeros(many), [b""] * many, HEIGHT, WIDTH)
    with pytest.raises(AnswerError, match="1001 detections; allowed: 1000"):
        parse_response(pack_response([found]), 1, "none")


def test_the_size_is_that_of_the_upright_image():
    jpeg = encode_pixels(np.zeros((WIDTH, HEIGHT), np.uint8), 90)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    Request((turned,), ("x",), {}).parse(answer())
    with pytest.raises(AnswerError, match="image_size is 12x16; the image that was sent has 16x12 pixels"):
        Request((jpeg,), ("x",), {}).parse(answer())
