"""What the benchmarks compare must give the same masks, or the comparison means nothing."""

import json

import numpy as np
import pytest

from bench.baseline import plain
from bench.drive import encoded_request
from bench.measure import Summary
from bench.report import Comparison
from bench.synthetic import scene
from bench.variant import Variant, copy_repository
from pipeline import contract, rle
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess
from repository.store import SHIPPED_REPOSITORY, read_config


@pytest.mark.parametrize("instances", [1, 10, 40])
@pytest.mark.parametrize("size", [(480, 640), (700, 420)])
def test_scene_plain_way_and_this_project_agree(instances, size):
    outputs = scene(instances, *size)
    ours = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, RequestParameters())
    theirs = plain.finish(outputs.detections, outputs.wide_prototypes, outputs.geometry)
    assert len(ours.scores) == len(theirs.scores) == instances
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
    for one, other in zip(ours.masks, theirs.masks, strict=True):
        mask, whole = rle.decode(one, *size), rle.decode(other, *size)
        union = (mask | whole).sum()
        assert union == 0 or (mask & whole).sum() / union > 0.95


def test_exact_masks_are_what_this_project_computes():
    outputs = scene(10, 300, 500)
    ours = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, RequestParameters())
    rows = outputs.candidates[outputs.candidates[:, 0] >= 0.25]
    for box, score, counts in zip(ours.boxes, ours.scores, ours.masks, strict=True):
        weights = rows[rows[:, 0] == score][0, contract.FIRST_COEFFICIENT_COLUMN :]
        (exact,) = plain.exact_masks(outputs.prototypes, weights[None], box[None], outputs.geometry)
        mask = rle.decode(counts, 300, 500)
        assert (mask & exact).sum() >= 0.999 * (mask | exact).sum()


def test_a_request_holds_its_images():
    request = encoded_request("segment_int8", [b"one", b"three"])
    assert list(request.inputs[0].shape) == [2, 1]
    assert request.raw_input_contents[0] == b"\x03\0\0\0one\x05\0\0\0three"


def test_a_variant_changes_the_copy_alone(tmp_path):
    before = (SHIPPED_REPOSITORY / "preprocess" / "config.pbtxt").read_text()
    variant = Variant(preprocess_instances=7, network_instances=3, network_kind="cpu", parameters={"provider": "cuda"})
    copy = copy_repository(SHIPPED_REPOSITORY, tmp_path / "copy", "cuda", variant)
    assert read_config(copy / "preprocess" / "config.pbtxt").instance_group[0].count == 7
    network = read_config(copy / "network_fp16" / "configs" / "cuda.pbtxt")
    assert network.instance_group[0].count == 3
    assert network.instance_group[0].kind == 2  # KIND_CPU
    assert network.parameters["provider"].string_value == "cuda"
    assert (SHIPPED_REPOSITORY / "preprocess" / "config.pbtxt").read_text() == before


def test_a_report_holds_figures_and_ratios(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is missing; make test-unit installs it")
    comparison = Comparison("part", "what")
    comparison.add("case, one", "ours", "ms", Summary.of([1, 2, 3]), {"worst_mask_iou": 0.99})
    comparison.add("case, one", "theirs", "ms", Summary.of([2, 4, 6]))
    comparison.add_ratio("case, one", "theirs / ours", Summary.of([2]))
    data, picture = comparison.write(tmp_path)
    written = json.loads(data.read_text())
    assert [figure["median"] for figure in written["figures"]] == [2, 4]
    assert written["ratios"][0]["median"] == 2
    assert written["machine"]["cores"] >= 1
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "theirs / ours" in comparison.lines_of("case, one")
