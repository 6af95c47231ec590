"""Suppression, masks and their formats: kernels against :mod:`pipeline`, on the same tensors."""

import numpy as np
import pytest

from pipeline.decode import decode_candidates
from pipeline.letterbox import Geometry
from pipeline.masks import mask_boxes
from pipeline.parameters import RequestParameters
from pipeline.postprocess import segmentation_of
from steps.gpu import postprocess
from steps.gpu.postprocess import GpuPostprocess, NetworkOutputs
from steps.gpu.preprocess import describe_geometry
from steps.gpu.structs import IMAGE
from tests.gpu.emulated import EmulatedDevice

INPUT = 128
CELLS = INPUT // 4
COEFFICIENTS = 4
ROWS = 60
SIZES = ((300, 200), (100, 128), (64, 64), (37, 1000), (1000, 37), (1, 5))


def smooth(rng, *shape):
    """Values whose sums with the coefficients are exact in float32, so that all ways of adding agree."""
    coarse = rng.integers(-4, 5, (*shape[:-2], shape[-2] // 4, shape[-1] // 4))
    planes = np.repeat(np.repeat(coarse, 4, -2), 4, -1)
    planes = planes + np.roll(planes, 1, -1) + np.roll(planes, 1, -2)
    return (planes / 8).astype(np.float16)


def network_outputs(rng, batch, classes=3):
    candidates = np.zeros((batch, ROWS, 6 + COEFFICIENTS), np.float32)
    candidates[..., 0] = -np.sort(-rng.random((batch, ROWS)), axis=1)
    candidates[..., 1:3] = rng.random((batch, ROWS, 2)) * INPUT
    candidates[..., 3:5] = rng.random((batch, ROWS, 2)) ** 2 * INPUT
    candidates[..., 5] = rng.integers(0, classes, (batch, ROWS))
    candidates[..., 6:] = rng.integers(-4, 5, (batch, ROWS, COEFFICIENTS)) / 4
    candidates[:, 3, 3:5] = 3 * INPUT  # the whole picture, and beyond
    candidates[:, 4, 1:5] = candidates[:, 2, 1:5] + 0.25  # nearly another one's box
    candidates[:, 5, 1:3] = -50  # outside
    return candidates, smooth(rng, batch, COEFFICIENTS, CELLS, CELLS)


def expected(candidates, prototypes, geometry, parameters):
    return segmentation_of(decode_candidates(candidates, geometry, parameters), prototypes, geometry, parameters)


def run(device, put, candidates, prototypes, geometries, parameters):
    batch, rows, columns = candidates.shape
    outputs = NetworkOutputs(put(candidates), put(prototypes), rows, columns, *prototypes.shape[1:])
    post = GpuPostprocess(device, outputs, batch)
    return post, answers(post, put, geometries, parameters)


def answers(post, put, geometries, parameters):
    images = np.zeros(len(geometries), IMAGE)
    post.ask(images, parameters)
    for image, geometry in zip(images, geometries, strict=True):
        describe_geometry(image, geometry)
    post.start(put(images), len(images), with_edges=any(one.mask_format not in ("rle", "none") for one in parameters))
    found = post.wait()
    masks = [
        post.masks(index, geometry.height, geometry.width, asked.mask_format)
        for index, (geometry, asked) in enumerate(zip(geometries, parameters, strict=True))
    ]
    return list(zip(found, masks, strict=True))


def check_equal(answer, wanted):
    found, masks = answer
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.class_ids, wanted.class_ids)
    assert masks == wanted.masks


@pytest.mark.parametrize("seed", range(4))
def test_equals_pipeline(device, put, seed):
    rng = np.random.default_rng(seed)
    candidates, prototypes = network_outputs(rng, len(SIZES))
    geometries = [Geometry.fit(*size, INPUT, INPUT) for size in SIZES]
    parameters = [
        RequestParameters(),
        RequestParameters(confidence=0.0, iou=1.0, max_detections=1000),
        RequestParameters(confidence=0.6, classes=frozenset([0, 2])),
        RequestParameters(mask_format="png", max_detections=5),
        RequestParameters(mask_format="none"),
        RequestParameters(mask_format="polygon", classes=frozenset([1])),
    ]
    parameters = parameters[seed:] + parameters[:seed]
    _, found = run(device, put, candidates, prototypes, geometries, parameters)
    for answer, *arguments in zip(found, candidates, prototypes, geometries, parameters, strict=True):
        check_equal(answer, expected(*arguments))


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_masks_of_one_sign_fill_their_boxes(device, put, value):
    """Runs go on from a column's foot to the next one's head, to the picture's last pixel, or there are none."""
    rng = np.random.default_rng(7)
    candidates, prototypes = network_outputs(rng, 1)
    prototypes[:] = value
    candidates[..., 6:] = 1
    geometry = Geometry.fit(90, 50, INPUT, INPUT)
    asked = RequestParameters(confidence=0.0, iou=1.0)
    _, (answer,) = run(device, put, candidates, prototypes, [geometry], [asked])
    check_equal(answer, expected(candidates[0], prototypes[0], geometry, asked))


def test_runs_on_columns_of_a_whole_picture(device, put):
    """Where a box is as high as its picture, parts that touch the upper and the lower side join."""
    rng = np.random.default_rng(8)
    candidates, _ = network_outputs(rng, 1)
    prototypes = rng.integers(-2, 3, (1, COEFFICIENTS, CELLS, CELLS)).astype(np.float16)
    candidates[0, :, 1:3], candidates[0, :, 3:5] = INPUT / 2, 2 * INPUT
    geometry = Geometry.fit(700, 300, INPUT, INPUT)
    asked = RequestParameters(confidence=0.0, iou=1.0)
    _, (answer,) = run(device, put, candidates, prototypes, [geometry], [asked])
    check_equal(answer, expected(candidates[0], prototypes[0], geometry, asked))


@pytest.mark.parametrize("stretch", [True, False])
@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_ready_masks_reach_beyond_their_boxes(device, put, stretch, mask_format):
    """A row's only coefficient is the number of its mask; some of the masks are empty, whole, or one cell."""
    rng = np.random.default_rng(13)
    candidates, prototypes = network_outputs(rng, len(SIZES))
    candidates = np.ascontiguousarray(candidates[..., :7])
    candidates[..., 6] = rng.permuted(np.tile(np.arange(ROWS), (len(SIZES), 1)), axis=1)
    prototypes = smooth(rng, len(SIZES), ROWS, CELLS, CELLS) - np.float16(0.75)
    prototypes[:, :3], prototypes[:, 2, 7, 31], prototypes[:, 3] = -1, 1, 1
    geometries = [Geometry.fit(*size, INPUT, INPUT, stretch=stretch) for size in SIZES]
    asked = RequestParameters(confidence=0.0, iou=1.0, max_detections=1000, mask_format=mask_format)
    post, found = run(device, put, candidates, prototypes, geometries, [asked] * len(SIZES))
    for index, (answer, *arguments) in enumerate(zip(found, candidates, prototypes, geometries, strict=True)):
        check_equal(answer, expected(*arguments, asked))
        rows = decode_candidates(candidates[index], geometries[index], asked)
        boxes = mask_boxes(prototypes[index], rows.coefficients, rows.boxes, geometries[index])
        assert np.abs(post.mask_boxes(index) - boxes).max() <= 1


def test_nothing_found(device, put):
    rng = np.random.default_rng(9)
    candidates, prototypes = network_outputs(rng, 2)
    candidates[..., 0] = 0.1
    post, found = run(
        device, put, candidates, prototypes, [Geometry.fit(90, 50, INPUT, INPUT)] * 2, [RequestParameters()] * 2
    )
    assert [(len(one.scores), masks) for one, masks in found] == [(0, [])] * 2
    assert post.last_score(1) == np.float32(0.1)


@pytest.mark.parametrize("mask_format", ["rle", "polygon"])
def test_masks_without_room(device, put, monkeypatch, mask_format):
    """A batch says so; the pools grow for one image."""
    monkeypatch.setattr(postprocess, "_EDGES", 256)
    monkeypatch.setattr(postprocess, "_BYTES", 128)
    rng = np.random.default_rng(10)
    candidates, prototypes = network_outputs(rng, 3)
    geometries = [Geometry.fit(200, 300, INPUT, INPUT)] * 3
    asked = [RequestParameters(mask_format=mask_format)] * 3
    with pytest.raises(RuntimeError, match="run its images one by one"):
        run(device, put, candidates, prototypes, geometries, asked)
    post, (answer,) = run(device, put, candidates[:1], prototypes[:1], geometries[:1], asked[:1])
    wanted = expected(candidates[0], prototypes[0], geometries[0], asked[0])
    check_equal(answer, wanted)
    (again,) = answers(post, put, geometries[:1], asked[:1])
    check_equal(again, wanted)


def test_long_list_of_classes(device, put):
    rng = np.random.default_rng(11)
    candidates, prototypes = network_outputs(rng, 2)
    geometries = [Geometry.fit(200, 300, INPUT, INPUT)] * 2
    asked = [RequestParameters(classes=frozenset(range(2, 9000))), RequestParameters(classes=frozenset([1]))]
    _, found = run(device, put, candidates, prototypes, geometries, asked)
    for answer, *arguments in zip(found, candidates, prototypes, geometries, asked, strict=True):
        check_equal(answer, expected(*arguments))


def test_same_bytes_from_run_to_run(device, put):
    """Places in the pools differ from run to run; the answers do not."""
    rng = np.random.default_rng(12)
    candidates, prototypes = network_outputs(rng, 4)
    geometries = [Geometry.fit(70, 90, INPUT, INPUT)] * 4
    asked = [RequestParameters(confidence=0.0, iou=1.0)] * 4
    post, first = run(device, put, candidates, prototypes, geometries, asked)
    for _ in range(1 if isinstance(device, EmulatedDevice) else 20):
        for one, other in zip(answers(post, put, geometries, asked), first, strict=True):
            assert one[1] == other[1]
            np.testing.assert_array_equal(one[0].boxes, other[0].boxes)


@pytest.mark.parametrize(
    ("coefficients", "planes", "said"),
    [(257, 257, "257 mask coefficients; allowed: 1 to 256"), (32, 31, "32 mask coefficients for 31 prototypes")],
)
def test_coefficients_that_the_kernels_cannot_take_are_refused(device, coefficients, planes, said):
    with pytest.raises(ValueError, match=said):
        GpuPostprocess(device, NetworkOutputs(0, 0, 10, 6 + coefficients, planes, 8, 8), 1)
