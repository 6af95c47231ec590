"""Whatever one request asks for, others are answered: masks without end beside photographs, on the real server."""

from __future__ import annotations

import base64
import json
import time
import urllib.request

import cv2
import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from client.errors import RequestError
from load.photographs import at_megapixels
from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.mask_formats import decode_mask
from tests.chaos import protocol
from tests.chaos.corpus_heavy import endless_masks
from tests.chaos.hostile_send import Sender
from tests.integration.beside import BOUND_S, beside, one_try

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def requests(reference):
    pixels = at_megapixels(reference.photographs[0], 49)
    large = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return {request.name: request for request in endless_masks(large)}


@pytest.mark.parametrize("name", ["1 x rle", "1 x polygon", "1 x png", "1 x png_base64", "8 x rle", "8 x png"])
def test_photographs_are_answered_beside_it(server, reference, tmp_path, requests, name):
    photograph = reference.photographs[1].read_bytes()
    (outcome,), slowest_s, alone_s = beside(server, photograph, [requests[name]], tmp_path)
    assert outcome.fault == ""
    assert slowest_s < BOUND_S + 3 * alone_s  # on a quiet machine one takes less than a tenth of a second alone


def test_several_at_once_do_not_add_up(server, reference, tmp_path, requests):
    photograph = reference.photographs[1].read_bytes()
    (one,) = Sender(server.grpc_url, server.http_url, tmp_path).send_all(iter([requests["1 x rle"]]))
    outcomes, slowest_s, alone_s = beside(server, photograph, [requests["1 x rle"]] * 5, tmp_path)  # four at once
    assert [outcome.fault for outcome in outcomes] == [""] * 5
    # One of them may have been begun just before the bound; four one after the other would take four times as long.
    assert slowest_s < BOUND_S + 2 * one.seconds + 3 * alone_s


def test_the_refusal_says_what_came_what_is_allowed_and_what_to_do(server, requests):
    with grpc.insecure_channel(server.grpc_url, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(protocol.INFER, lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as no:
            call(requests["1 x png"].message, timeout=60)
    assert no.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for words in ("detections as 'png'", "8", "pixels", "allowed: 1.5 s", "max_detections", "'rle'"):
        assert words in no.value.details()


def test_cards_at_12_megapixels_as_png(server, reference):
    card = cv2.imdecode(np.frombuffer(reference.photographs[0].read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    sheet = np.tile(cv2.resize(card, (666, 500)), (6, 6, 1))
    picture = cv2.imencode(".jpg", sheet)[1].tobytes()
    with one_try(server) as client:
        plain = client.segment(picture)
        found = client.segment(picture, mask_format="png")
    assert len(found) == len(plain) > 20
    for index in range(len(found)):
        np.testing.assert_array_equal(found.mask(index), plain.mask(index))


def over_json(server, image, **parameters):
    body, length = protocol.infer_body(image, lambda request: request | {"parameters": parameters})
    return protocol.send_http(server.http_url, protocol.http_request(body, length), 30)


def test_png_in_json_travels_as_base64(server, reference):
    photograph = reference.photographs[0].read_bytes()
    status, body = over_json(server, photograph, mask_format="png_base64")
    assert status == 200
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    height, width = outputs["image_size"]
    with one_try(server) as client:
        expected = client.segment(photograph, mask_format="png")
    assert base64.b64decode(outputs["masks"][0], validate=True) == expected.encoded_masks[0]
    mask = decode_mask(outputs["masks"][0].encode(), "png_base64", height, width)
    np.testing.assert_array_equal(mask, expected.mask(0))


def test_numbers_as_text(server, reference):
    photograph = reference.photographs[0].read_bytes()
    _, as_text = over_json(server, photograph, confidence="0.9", iou="0.5", max_detections="1")
    _, as_numbers = over_json(server, photograph, confidence=0.9, iou=0.5, max_detections=1)
    assert json.loads(as_text)["outputs"] == json.loads(as_numbers)["outputs"]
    status, refusal = over_json(server, photograph, confidence="nan")
    assert status == 400
    assert b"'confidence' is 'nan'; allowed: a number from 0 to 1" in refusal


@pytest.mark.parametrize("prefix", [b"", b"data:image/jpeg;base64,"])
def test_base64_text_is_named(server, reference, prefix):
    text = prefix + base64.b64encode(reference.photographs[0].read_bytes())
    with one_try(server) as client, pytest.raises(RequestError, match=r"base64 text|data: URI"):
        client.segment(text)


def test_candidates_that_were_cut_off_are_counted(server):
    def count():
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("segmentation_images_cut_total{"))

    candidates = np.zeros((1, contract.DEFAULT_TOP_K, 38), np.float32)
    candidates[..., 0] = np.linspace(0.9, 0.3, contract.DEFAULT_TOP_K)
    candidates[..., 1:5] = (320, 320, 60, 60)
    tensors = {
        "candidates": (candidates, "FP32"),
        "prototypes": (np.zeros((1, 32, 160, 160), np.float16), "FP16"),
        "geometry": (Geometry.fit(640, 640, 640, 640).to_array()[None], "FP32"),
    }
    inputs = []
    for name, (array, datatype) in tensors.items():
        inputs.append(InferInput(name, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    with InferenceServerClient(server.grpc_url) as client:
        before = count()
        client.infer(contract.POSTPROCESS_MODEL, inputs, parameters={"confidence": "0.31"})
        client.infer(contract.POSTPROCESS_MODEL, inputs, parameters={"confidence": "0.25"})
    ends = time.monotonic() + 10
    while count() < before + 1 and time.monotonic() < ends:
        time.sleep(0.1)
    assert count() == before + 1
