"""What the benchmarks compare must give the same masks, or the comparison means nothing."""

import json

import numpy as np
import pytest

from builder.repository import SHIPPED_REPOSITORY, read_config
from load.bench.baseline import plain
from load.bench.drive import encoded_request
from load.bench.measure import Summary
from load.bench.report import Comparison
from load.bench.synthetic import scene
from load.bench.variant import Variant, copy_repository
from pipeline import contract, rle
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess
from serving.onnx_cuda import FixedSizeNetwork, batch_sizes


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
    network = read_config(copy / "segmentation_fp16" / "configs" / "cuda.pbtxt")
    assert network.instance_group[0].count == 3
    assert network.instance_group[0].kind == 2  # KIND_CPU
    assert network.parameters["provider"].string_value == "cuda"
    assert (SHIPPED_REPOSITORY / "preprocess" / "config.pbtxt").read_text() == before


class CountingSession:
    """Stands in for a session: every output is the batch's first pixel value, and batch sizes are noted."""

    def __init__(self):
        self.sizes = []

    def get_inputs(self):
        return [type("Node", (), {"name": contract.IMAGES.name, "shape": ["batch", 4, 4, 3]})]

    def get_outputs(self):
        shapes = {contract.CANDIDATES.name: ["batch", 5, 38], contract.PROTOTYPES.name: ["batch", 32, 1, 1]}
        return [type("Node", (), {"name": name, "shape": shape}) for name, shape in shapes.items()]

    def io_binding(self):
        return Binding()

    def run_with_iobinding(self, binding):
        self.sizes.append(len(binding.images))
        for values in binding.outputs.values():
            values.reshape(len(values), -1)[:] = binding.images.reshape(len(values), -1)[:, :1]


class Binding:
    def __init__(self):
        self.outputs = {}

    @staticmethod
    def view(dtype, shape, address):
        import ctypes

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def bind_input(self, name, device, index, dtype, shape, address):
        self.images = self.view(dtype, shape, address).copy()  # as ONNX Runtime does when the device differs

    def bind_output(self, name, device, index, dtype, shape, address):
        self.outputs[name] = self.view(dtype, shape, address)


def test_batches_are_padded_to_prepared_sizes():
    assert batch_sizes(16) == (1, 2, 4, 8, 16)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
    assert batch_sizes(1) == (1,)
    with pytest.raises(ValueError, match="1 or more"):
        batch_sizes(0)
    locked = []
    session = CountingSession()
    network = FixedSizeNetwork(session, 6, locked.append)
    assert len(locked) == 3
    assert set(session.sizes) == {1, 2, 4, 6}  # every size runs before the first request
    images = [np.full((1, 4, 4, 3), value, np.uint8) for value in (9, 8, 7, 6, 5)]
    for count, padded in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 6)):
        session.sizes.clear()
        outputs = network.run(images[:count])
        assert session.sizes == [padded]
        assert [(int(c[0, 0, 0]), int(p[0, 0, 0, 0])) for c, p in outputs] == [(9 - i, 9 - i) for i in range(count)]
    with pytest.raises(ValueError, match="allowed: 6"):
        network.run(images + images)


def test_a_report_holds_figures_and_ratios(tmp_path):
    pytest.importorskip("matplotlib")
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
