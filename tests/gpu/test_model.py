"""The fused model with a stand-in for Triton: one answer for each request, and a bad one fails alone."""

import importlib
import json

import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images import ImageLimits
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess
from pipeline.preprocess import preprocess
from steps.gpu.postprocess import NetworkOutputs
from steps.gpu.segmenter import GpuSegmenter
from tests.gpu.test_postprocess import COEFFICIENTS, INPUT, ROWS, network_outputs
from tests.gpu.test_preprocess import jpeg, picture, png
from tests.gpu.triton import Request, TritonError

MOST = 6


class FixedNetwork:
    """Leaves the same outputs whatever the images are; if asked, for all of a batch."""

    input_shape = (INPUT, INPUT, 3)

    def __init__(self, device, put, same):
        self.candidates, self.prototypes = network_outputs(np.random.default_rng(5), MOST)
        if same:
            self.candidates[:], self.prototypes[:] = self.candidates[0], self.prototypes[0]
        self.images = device.memory(MOST * INPUT * INPUT * 3)
        addresses = put(self.candidates), put(self.prototypes)
        self.outputs = NetworkOutputs(*addresses, ROWS, 6 + COEFFICIENTS, *self.prototypes.shape[1:])
        self.runs = []

    def run(self, count):
        self.runs.append(count)


@pytest.fixture
def model(request, triton, device, decoder, put, monkeypatch):
    module = importlib.import_module("steps.gpu.model")  # anew, with the stand-in
    batch, same = getattr(request, "param", (MOST, False))
    network = FixedNetwork(device, put, same)
    segmenter = GpuSegmenter(device, network, decoder, batch, 2, ImageLimits(max_pixels=200_000))
    monkeypatch.setattr(module, "open_segmenter", lambda *_, **__: (segmenter, []))
    model = module.FusedModel()
    model.initialize(
        {
            "model_config": json.dumps({"max_batch_size": MOST, "instance_group": [{"count": 2}]}),
            "model_repository": "/nowhere/network_fp16",
            "model_version": "1",
            "model_name": "network_fp16",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    yield model, network
    model.close()


def expected(network, first, images, parameters):
    answers = []
    for index, data in enumerate(images):
        geometry = preprocess(data, np.empty(network.input_shape, np.uint8))
        tensors = network.candidates[first + index], network.prototypes[first + index]
        answers.append(postprocess(*tensors, geometry, parameters))
    return pack_response(answers)


def test_answers_as_the_three_steps_do(model):
    model, network = model
    photograph, drawing = jpeg(picture(300, 200)), png(picture(90, 120))
    requests = [
        Request([photograph]),
        Request([b"no image"]),
        Request([drawing, photograph], mask_format="polygon", confidence=0.5),
        Request([photograph], confidence=2),
        Request([photograph, drawing[:-20]]),
        Request([jpeg(picture(500, 500))]),
        Request([drawing], mask_format="none", classes="1"),
    ]
    responses = model.execute(requests)
    assert network.runs == [6]
    for index, first in ((0, 0), (2, 1), (6, 5)):
        asked = {**requests[index]._parameters}
        wanted = expected(network, first, requests[index].images, RequestParameters.parse(asked))
        assert responses[index].error is None
        assert responses[index].tensors.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(responses[index].tensors[name], array)
    faults = [responses[index].error.message for index in (1, 3, 4, 5)]
    assert "accepted: JPEG, PNG, WEBP, BMP, TIFF" in faults[0]
    assert "'confidence' is 2" in faults[1]
    assert faults[2].startswith("image 2 of 2: the PNG is truncated")
    assert "500x500 pixels, 250000 in all; allowed: 200000" in faults[3]
    assert {responses[index].error.code for index in (1, 3, 4, 5)} == {TritonError.INVALID_ARG}


def test_another_way_of_resizing_is_refused(triton):
    config = {"parameters": {"resample": {"string_value": "bilinear"}}, "instance_group": [{"count": 1}]}
    module = importlib.import_module("steps.gpu.model")
    with pytest.raises(ValueError, match=r"'resample' in config\.pbtxt is 'bilinear'; allowed: area"):
        module.FusedModel().initialize({"model_config": json.dumps(config), "model_repository": "/nowhere/network"})


def test_nothing_to_run(model):
    model, network = model
    (response,) = model.execute([Request([b""])])
    assert "empty (0 bytes)" in response.error.message
    assert network.runs == []


def test_an_image_that_only_the_decoder_refuses_fails_alone(model):
    """What is damaged behind a sound header is found while the batch is under way."""
    model, network = model
    damaged = bytearray(png(picture(90, 120)))
    damaged[60:400] = bytes(340)
    photograph = jpeg(picture(300, 200))
    with pytest.raises(ImageError) as refused:
        preprocess(bytes(damaged), np.empty(network.input_shape, np.uint8))
    bad, good = model.execute([Request([bytes(damaged)]), Request([photograph])])
    assert bad.error.message == str(refused.value)
    wanted = expected(network, 1, [photograph], RequestParameters())
    np.testing.assert_array_equal(good.tensors["boxes"], wanted["boxes"])


def test_a_gpu_that_fails_is_the_servers_fault(model, triton):
    model, network = model

    def fail(count):
        raise RuntimeError("CUDA error 700")

    network.run = fail
    responses = model.execute([Request([jpeg(picture(300, 200))]), Request([b""])])
    assert responses[0].error.code == TritonError.INTERNAL
    assert "CUDA error 700" in triton.logged[0]
    assert responses[1].error.code == TritonError.INVALID_ARG


def test_candidates_that_were_cut_are_reported(model, triton):
    model, network = model
    asked = Request([jpeg(picture(300, 200))], confidence=float(network.candidates[0, -1, 0]) / 2)
    model.execute([asked])
    assert f"all {ROWS} candidates" in triton.logged[0]
    assert "may be missing" in triton.logged[0]


@pytest.mark.parametrize("model", [(2, False)], indirect=True)
def test_groups_follow_each_other(model):
    """Whole requests, no more images at a time than the GPU takes."""
    model, network = model
    photograph, drawing = jpeg(picture(300, 200)), png(picture(90, 120))
    pairs = [[photograph, drawing], [photograph], [b""], [drawing], [photograph], [drawing, photograph]]
    requests = [Request(images) for images in pairs]
    responses = model.execute(requests)
    assert network.runs == [2, 2, 1, 2]
    for response, first, images in zip(responses, (0, 0, None, 1, 0, 0), pairs, strict=True):
        if first is None:
            assert "empty (0 bytes)" in response.error.message
            continue
        for name, array in expected(network, first, images, RequestParameters()).items():
            np.testing.assert_array_equal(response.tensors[name], array)


@pytest.mark.parametrize("model", [(MOST, True)], indirect=True)
@pytest.mark.parametrize("mask_format", ["rle", "polygon"])
def test_masks_without_room_for_a_batch(model, mask_format):
    """The images are run again, one by one."""
    model, network = model
    for lane in model._segmenter._lanes:
        for pool in (lane.postprocess._edges, lane.postprocess._text):
            pool._make(64)
    photograph = jpeg(picture(300, 200))
    requests = [Request([photograph] * 2, mask_format=mask_format), Request([photograph], mask_format=mask_format)]
    responses = model.execute(requests)
    assert network.runs == [3, 1, 1, 1]
    for request, response in zip(requests, responses, strict=True):
        wanted = expected(network, 0, request.images, RequestParameters(mask_format=mask_format))
        np.testing.assert_array_equal(response.tensors["masks"], wanted["masks"])
