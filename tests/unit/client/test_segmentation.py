"""Both clients over both protocols, against small servers on real sockets."""

from __future__ import annotations

import asyncio
import inspect
import threading

import cv2
import grpc
import numpy as np
import pytest

from client import (
    AsyncSegmentationClient,
    RequestError,
    RequestTimeoutError,
    SegmentationClient,
    ServerError,
    ServerUnavailableError,
)
from pipeline.parameters import RequestParameters
from tests.unit.client.kserve import Refusal, padded_answer


def test_what_is_not_given_is_not_sent(stub, connect):
    connect(stub.url, precision="fp16").segment(b"picture")
    (request,) = stub.received
    assert request.model == "segment_fp16"
    assert (request.shape, request.datatype, request.images) == ((1, 1), "BYTES", (b"picture",))
    assert request.parameters == {}


def test_parameters_travel_with_their_types(stub, connect):
    connect(stub.url).segment(
        b"picture", confidence=1, iou=np.float32(0.5), max_detections=7, mask_format="png", classes=(0, np.int64(2))
    )
    parameters = stub.received[0].parameters
    assert parameters == {"confidence": 1.0, "iou": 0.5, "max_detections": 7, "mask_format": "png", "classes": "0,2"}
    assert {name: type(value) for name, value in parameters.items()} == {
        **dict.fromkeys(("confidence", "iou"), float),
        "max_detections": int,
        **dict.fromkeys(("mask_format", "classes"), str),
    }
    assert RequestParameters.parse(parameters) == RequestParameters(1.0, 0.5, 7, "png", frozenset({0, 2}))


def test_a_long_batch_is_cut_into_requests_of_eight_and_comes_back_in_order(stub, connect):
    images = [b"picture %d" % index for index in range(19)]
    results = connect(stub.url).segment_batch(images, mask_format="png")
    assert [request.shape for request in stub.received] == [(8, 1), (8, 1), (3, 1)]
    assert [image for request in stub.received for image in request.images] == images
    assert [len(result) for result in results] == [*range(8), *range(8), *range(3)]
    # Image 2 of a request has two detections, in front of padding.
    result = results[2]
    assert result.boxes.tolist() == [[2, 0, 6, 4], [2, 1, 6, 5]]
    assert result.scores == pytest.approx([0.9, 0.8])
    assert result.class_ids.tolist() == [1, 2]
    assert np.array_equal(result.masks, [np.eye(10, 20)] * 2)
    assert (result.image_size, result.mask_format) == ((10, 20), "png")


def test_no_image_asks_nothing(stub, connect):
    assert connect(stub.url).segment_batch([]) == []
    assert stub.received == []


def test_paths_bytes_and_arrays(stub, connect, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"sent as it is")
    rgb = np.arange(10 * 20 * 3).astype(np.uint8).reshape(10, 20, 3)
    connect(stub.url).segment_batch([path, str(path), memoryview(b"bytes"), rgb, rgb[:, :, 0]])
    first, second, third, color, gray = stub.received[0].images
    assert (first, second, third) == (b"sent as it is", b"sent as it is", b"bytes")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(color, np.uint8), cv2.IMREAD_COLOR_RGB), rgb)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(gray, np.uint8), cv2.IMREAD_UNCHANGED), rgb[:, :, 0])


def test_an_image_that_cannot_be_read_asks_nothing(stub, connect, tmp_path):
    with pytest.raises(RequestError, match=r"missing\.jpg: cannot be read: No such file"):
        connect(stub.url).segment_batch([b"fine", tmp_path / "missing.jpg"])
    with pytest.raises(RequestError, match=r"array float32 \[4, 5, 3\]; allowed: uint8"):
        connect(stub.url).segment(np.zeros((4, 5, 3), np.float32))
    with pytest.raises(RequestError, match="call segment"):
        connect(stub.url).segment_batch(b"one image")
    assert stub.received == []


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, RequestError),
        (grpc.StatusCode.NOT_FOUND, 404, ServerUnavailableError),
        (grpc.StatusCode.UNAVAILABLE, 503, ServerUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, RequestTimeoutError),
        (grpc.StatusCode.INTERNAL, 500, ServerError),
        (grpc.StatusCode.UNKNOWN, 418, ServerError),
    ],
)
def test_the_status_alone_says_whose_fault_it_is(stub, connect, protocol, code, status, expected):
    # The words are those of another fault, to show that nobody reads them.
    def refuse(request):
        raise Refusal(code, status, "INVALID_ARGUMENT timeout unavailable 400")

    stub.answer = refuse
    with pytest.raises(expected) as caught:
        connect(stub.url).segment(b"picture")
    assert type(caught.value) is expected
    assert caught.value.status == (str(code) if protocol == "grpc" else str(status))


def test_a_refusal_keeps_the_servers_words_and_names_the_image(stub, connect, tmp_path):
    def refuse(request):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, 400, "parameter 'confidence' is 2; allowed: 0 to 1")

    stub.answer = refuse
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"picture")
    with pytest.raises(RequestError) as caught:
        connect(stub.url).segment(path, confidence=2)
    assert str(caught.value) == f"{path}: parameter 'confidence' is 2; allowed: 0 to 1"
    with pytest.raises(ValueError, match="2 images"):
        connect(stub.url).segment_batch([path, b"other"])


def test_an_answer_of_another_model_is_a_server_error(stub, connect):
    stub.answer = lambda request: {k: v for k, v in padded_answer(request).items() if k != "masks"}
    with pytest.raises(ServerError, match="no output 'masks'"):
        connect(stub.url).segment(b"picture")


def test_an_answer_whose_tensors_cannot_be_read_is_a_server_error(stub, connect):
    strange = {"masks": np.zeros((1, 1), np.int32), "boxes": np.full((1, 1, 4), np.nan, np.float32)}
    for name, array in strange.items():
        stub.answer = lambda request, name=name, array=array: {**padded_answer(request), name: array}
        with pytest.raises(ServerError):
            connect(stub.url).segment_batch([b"picture"] * 2)


def test_readiness(stub, connect):
    client = connect(stub.url, precision="fp32")
    assert client.is_ready() is True
    client.wait_ready(0)
    stub.ready = False
    assert client.is_ready() is False
    with pytest.raises(ServerUnavailableError, match=r"segment_fp32 is not loaded.*python -m serving run"):
        client.wait_ready(0.3)


def test_it_waits_until_the_model_is_ready(stub, connect):
    stub.ready = False
    timer = threading.Timer(0.5, setattr, (stub, "ready", True))
    timer.start()
    try:
        connect(stub.url).wait_ready(20)
    finally:
        timer.cancel()
    assert stub.ready


def test_the_twins_have_the_same_methods():
    def public(kind):
        return {
            name: list(inspect.signature(member).parameters.values())
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert public(SegmentationClient) == public(AsyncSegmentationClient)


def test_many_requests_of_one_asynchronous_client(stub, protocol):
    async def run():
        async with AsyncSegmentationClient(stub.url, protocol) as client:
            return await asyncio.gather(*(client.segment_batch([b"x"] * (index % 4 + 1)) for index in range(20)))

    results = asyncio.run(run())
    assert [len(result) for result in results] == [index % 4 + 1 for index in range(20)]
