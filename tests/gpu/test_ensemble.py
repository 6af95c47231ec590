"""The GPU's steps as models of their own, one after the other, against the CPU's: the same answers and refusals."""

import importlib
import json

import numpy as np
import pytest

from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess
from pipeline.preprocess import preprocess
from steps.gpu.postprocess import NetworkOutputs
from tests.gpu.test_postprocess import CELLS, COEFFICIENTS, INPUT, ROWS, network_outputs
from tests.gpu.test_preprocess import jpeg, picture, png
from tests.gpu.triton import Request, Tensor, TritonError

MOST = 6
PIXELS = {"name": "images", "dims": [str(INPUT), str(INPUT), "3"]}
OUTPUTS = [
    {"name": "candidates", "dims": [str(ROWS), str(6 + COEFFICIENTS)]},
    {"name": "prototypes", "dims": [str(COEFFICIENTS), str(CELLS), str(CELLS)]},
]


def arguments(name, inputs, outputs, **parameters):
    config = {
        "max_batch_size": MOST,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": 2}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    return {
        "model_config": json.dumps(config),
        "model_repository": f"/nowhere/{name}",
        "model_version": "1",
        "model_name": name,
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture
def ensemble(triton, device, decoder, monkeypatch):
    """The module, on the device that is tested."""
    module = importlib.import_module("steps.gpu.ensemble")  # anew, with the stand-in
    for name in ("number", "stream", "problems"):
        monkeypatch.setattr(device, name, getattr(device, name, ()), raising=False)
    monkeypatch.setattr(module, "CudaDevice", lambda number: device)
    monkeypatch.setattr(module, "EngineDecoder", lambda *_: decoder)
    return module


@pytest.fixture
def pre(ensemble):
    step = ensemble.PreprocessStep(arguments("preprocess", [], [PIXELS], max_image_pixels="200000"))
    yield step
    step.close()


@pytest.fixture
def post(ensemble):
    step = ensemble.PostprocessStep(arguments("postprocess", OUTPUTS, []))
    yield step
    step.close()


@pytest.fixture
def outputs(device, put):
    """What a network leaves of each image: on the host, and what hands it over on the GPU."""
    candidates, prototypes = network_outputs(np.random.default_rng(5), MOST)
    rows = [device.share(put(array), array.shape, array.dtype) for array in (candidates, prototypes)]
    return candidates, prototypes, rows


def asked(outputs, first, geometry, on_gpu=True, **parameters):
    """A request to ``postprocess`` for the images from one on."""
    *arrays, rows = outputs
    names = ("candidates", "prototypes")
    count = len(geometry)
    if on_gpu:
        tensors = [Tensor.from_dlpack(name, take(first, count)) for name, take in zip(names, rows, strict=True)]
    else:
        tensors = [Tensor(name, array[first : first + count]) for name, array in zip(names, arrays, strict=True)]
    return Request(tensors=[*tensors, Tensor("geometry", geometry)], **parameters)


def expected(outputs, first, geometry, parameters):
    answers = [
        postprocess(outputs[0][first + index], outputs[1][first + index], Geometry.from_array(row), parameters)
        for index, row in enumerate(geometry)
    ]
    return pack_response(answers)


def assert_equal(response, wanted):
    assert response.error is None
    assert response.tensors.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(response.tensors[name], array)


def test_pixels_are_the_processors(pre, device, get):
    photograph, drawing = jpeg(picture(300, 200)), png(picture(90, 120))
    requests = [
        Request([photograph]),
        Request([b"no image"]),
        Request([drawing, photograph]),
        Request([photograph, drawing[:-20]]),
        Request([jpeg(picture(500, 500))]),
        Request([drawing]),
    ]
    responses = pre.execute(requests)
    for index in (0, 2, 5):
        capsule, geometry = (responses[index].tensors[name] for name in ("images", "geometry"))
        address, owner = device.received(capsule)
        pixels = get(address, (len(geometry), INPUT, INPUT, 3))
        assert owner.nbytes == pixels.nbytes
        for data, mine, where in zip(requests[index].images, pixels, geometry, strict=True):
            wanted = np.empty((INPUT, INPUT, 3), np.uint8)
            np.testing.assert_array_equal(where, preprocess(data, wanted).to_array())
            assert np.abs(mine.astype(int) - wanted).mean() < 1
    faults = [responses[index].error.message for index in (1, 3, 4)]
    assert "accepted: JPEG, PNG, WEBP, BMP, TIFF" in faults[0]
    assert faults[1].startswith("image 2 of 2: the PNG is truncated")
    assert "500x500 pixels, 250000 in all; allowed: 200000" in faults[2]


def test_instances_are_the_processors(post, outputs):
    """Every request has its own parameters, and one at fault fails alone."""
    places = [Geometry.fit(*size, INPUT, INPUT).to_array() for size in ((300, 200), (90, 120), (37, 400))]
    one, two, three = (np.stack(part) for part in (places[:1], places[1:], places))
    cases = [(0, one, {}), (1, two, {"mask_format": "polygon", "confidence": 0.5}), (3, three, {"classes": "1"})]
    requests = [asked(outputs, first, geometry, **parameters) for first, geometry, parameters in cases]
    bad = asked(outputs, 0, one, confidence=2)
    responses = post.execute([requests[0], bad, *requests[1:]])
    assert "'confidence' is 2" in responses.pop(1).error.message
    for response, (first, geometry, parameters) in zip(responses, cases, strict=True):
        assert_equal(response, expected(outputs, first, geometry, RequestParameters.parse(parameters)))


def test_tensors_of_the_host_are_taken_too(post, outputs):
    geometry = np.stack([Geometry.fit(300, 200, INPUT, INPUT).to_array()] * 2)
    requests = [asked(outputs, first, geometry, on_gpu=on_gpu) for first, on_gpu in ((0, False), (2, True))]
    for first, response in zip((0, 2), post.execute(requests), strict=True):
        assert_equal(response, expected(outputs, first, geometry, RequestParameters()))


@pytest.mark.parametrize("mask_format", ["rle", "polygon"])
def test_masks_without_room_for_a_batch(post, outputs, mask_format):
    for pool in (post._step._edges, post._step._text):
        pool._make(64)
    geometry = np.stack([Geometry.fit(300, 200, INPUT, INPUT).to_array()] * 2)
    requests = [asked(outputs, first, geometry, mask_format=mask_format) for first in (0, 2)]
    for first, response in zip((0, 2), post.execute(requests), strict=True):
        assert_equal(response, expected(outputs, first, geometry, RequestParameters(mask_format=mask_format)))


def test_a_gpu_that_fails_is_the_servers_fault(pre, triton, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr(pre._step, "run", fail)
    responses = pre.execute([Request([jpeg(picture(300, 200))]), Request([b""])])
    assert responses[0].error.code == TritonError.INTERNAL
    assert "CUDA error 700" in triton.logged[0]
    assert responses[1].error.code == TritonError.INVALID_ARG


class CountingNetwork:
    """Leaves in each image's outputs the sum of its pixels."""

    input_shape = (INPUT, INPUT, 3)
    problems = ()

    def __init__(self, device, get, put):
        self.images = device.memory(MOST * INPUT * INPUT * 3)
        self.device, self.get, self.runs = device, get, []
        shapes = (MOST, ROWS, 6 + COEFFICIENTS), (MOST, COEFFICIENTS, CELLS, CELLS)
        candidates, prototypes = (
            put(np.zeros(shape, dtype)) for shape, dtype in zip(shapes, ("f4", "f2"), strict=True)
        )
        self.outputs = type("Outputs", (), {"candidates": candidates, "prototypes": prototypes})
        self.staged = device.host(shapes[0], np.float32)

    def run(self, count):
        self.runs.append(count)
        pixels = self.get(self.images, (count, *self.input_shape))
        self.staged[:count] = pixels.sum((1, 2, 3), dtype=np.float32)[:, None, None]
        self.device.upload(self.outputs.candidates, self.staged)


def test_the_network_between_them(ensemble, device, get, put, monkeypatch):
    """Runs all images together and gives each request its own outputs."""
    network = CountingNetwork(device, get, put)
    monkeypatch.setattr(ensemble, "open_network", lambda *_: network)
    step = ensemble.NetworkStep(arguments("network_fp16", [PIXELS], OUTPUTS))
    pixels = np.random.default_rng(1).integers(0, 256, (3, INPUT, INPUT, 3), np.uint8)
    rows = device.share(put(pixels), pixels.shape, np.uint8)
    requests = [
        Request(tensors=[Tensor.from_dlpack(contract.IMAGES.name, rows(0, 1))]),
        Request(tensors=[Tensor.from_dlpack(contract.IMAGES.name, rows(1, 2))]),
        Request(tensors=[Tensor(contract.IMAGES.name, pixels[1:2])]),
    ]
    responses = step.execute(requests)
    step.close()
    assert network.runs == [4]
    for response, mine in zip(responses, (pixels[:1], pixels[1:], pixels[1:2]), strict=True):
        address, _ = device.received(response.tensors["candidates"])
        candidates = get(address, (len(mine), ROWS, 6 + COEFFICIENTS), np.float32)
        np.testing.assert_array_equal(candidates[:, 0, 0], mine.sum((1, 2, 3), dtype=np.float32))
        assert response.tensors["prototypes"] is not None


class FixedNetwork:
    """Keeps the pixels of each run, and leaves the same outputs whatever they are."""

    input_shape = (INPUT, INPUT, 3)
    problems = ()

    def __init__(self, device, get, put, candidates, prototypes):
        self.images, self.get, self.runs = device.memory(MOST * INPUT * INPUT * 3), get, []
        self.outputs = NetworkOutputs(
            put(candidates), put(prototypes), ROWS, 6 + COEFFICIENTS, COEFFICIENTS, CELLS, CELLS
        )

    def run(self, count):
        self.runs.append(self.get(self.images, (count, *self.input_shape)))


def test_network_and_masks_in_one_process(ensemble, device, get, put, outputs, monkeypatch):
    """Gives what the network and the step behind it give, each request by itself."""
    network = FixedNetwork(device, get, put, *outputs[:2])
    monkeypatch.setattr(ensemble, "open_network", lambda *_: network)
    step = ensemble.SegmentationStep(arguments("network_fp16", [PIXELS], OUTPUTS))
    pixels = np.random.default_rng(1).integers(0, 256, (3, INPUT, INPUT, 3), np.uint8)
    rows = device.share(put(pixels), pixels.shape, np.uint8)
    places = [Geometry.fit(*size, INPUT, INPUT).to_array() for size in ((300, 200), (90, 120), (37, 400))]
    requests = [
        Request(
            tensors=[
                Tensor.from_dlpack("images", rows(first, count)),
                Tensor("geometry", np.stack(places[first : first + count])),
            ],
            **parameters,
        )
        for first, count, parameters in ((0, 1, {}), (0, 1, {"confidence": 2}), (1, 2, {"mask_format": "polygon"}))
    ]
    good, bad, pair = step.execute(requests)
    step.close()
    assert "'confidence' is 2" in bad.error.message
    np.testing.assert_array_equal(network.runs[0], pixels)
    assert_equal(good, expected(outputs, 0, np.stack(places[:1]), RequestParameters()))
    assert_equal(pair, expected(outputs, 1, np.stack(places[1:]), RequestParameters(mask_format="polygon")))
