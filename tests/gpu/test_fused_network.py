"""The network as layers against ONNX Runtime on the same file; cuDNN is a stand-in where there is no GPU."""

import importlib.util

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from steps.gpu.device import CudaDevice
from steps.gpu.fused_network import FusedNetwork, open_network
from steps.gpu.layers import Convolution, Map, UnsupportedNetwork
from steps.gpu.reader import layers_of
from tests.gpu.networks import SIZE, served_network
from tests.gpu.stand_ins import HostConvolutions, host_segments

MOST = 3
NETWORKS = {
    "yolov8": {"attention": False},
    "attention": {},
    "one class": {"classes": 1},
    "without bins": {"bins": 1, "classes": 8},
    "yolov5's stem": {"stem": (6, 2, 2), "attention": False},
    "stem of stride 1": {"stem": (3, 1, 1), "attention": False},
}


def fused(path, device, most=MOST):
    if isinstance(device, CudaDevice):
        if importlib.util.find_spec("cudnn") is None:
            pytest.skip("nvidia-cudnn-frontend is missing; where it is: make test-gpu")
        if layers_of(onnx.load(path)).segments and "CUDAExecutionProvider" not in ort.get_available_providers():
            pytest.skip("onnxruntime-gpu, which runs attention, is missing; where it is: make test-gpu")
        return FusedNetwork(path, device, most)
    return FusedNetwork(path, device, most, HostConvolutions(), host_segments)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


def by_onnx(path, images):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})


def run(network, device, images):
    staged = device.host(images.shape, np.uint8)
    staged[...] = images
    device.upload(network.images, staged)
    network.run(len(images))
    out = network.outputs
    candidates = device.host((len(images), out.rows, out.columns), np.float32)
    prototypes = device.host((len(images), out.columns - 6, out.cells_high, out.cells_wide), np.float16)
    device.wait()
    device.download(candidates, out.candidates)
    device.download(prototypes, out.prototypes)
    return np.array(candidates), np.array(prototypes)


def assert_same(found, expected, points=None):
    """Rows of nearly the same score may have changed places, and the last ones are others."""
    (candidates, prototypes), (wanted, planes) = found, expected
    assert np.linalg.norm(prototypes.astype(float) - planes) < 5e-3 * np.linalg.norm(planes.astype(float))
    assert np.abs(candidates[..., 0] - wanted[..., 0]).max() < 5e-3
    for rows, others in zip(candidates, wanted, strict=True):
        assert (np.diff(rows[:, 0]) <= 0).all()
        off = np.abs(rows[:, None, 6:] - others[None, :, 6:]).max(2)
        nearest = off.argmin(1)
        kept = off.min(1) < 0.05
        assert kept.mean() > 0.9
        assert np.abs(rows[:, 1:5] - others[nearest, 1:5])[kept].max() < 0.25
        assert (rows[:, 5] == others[nearest, 5])[kept].mean() > 0.95


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_same_as_onnx_runtime(options, device, tmp_path):
    path = served_network(tmp_path / "half.onnx", **options)
    exact = served_network(tmp_path / "single.onnx", half=False, **options)
    network = fused(path, device)
    images = pictures(MOST)
    assert_same(run(network, device, images), by_onnx(exact, images))
    assert network.layers.head is not None
    assert network.layers.segments == options.get("attention", True)
    assert network.problems == []


def test_every_batch_size_gives_the_same(device, tmp_path):
    network = fused(served_network(tmp_path / "model.onnx"), device, most=4)
    images = pictures(4)
    together = run(network, device, images)
    again = run(network, device, images)
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for count in (1, 2, 3):
        assert_same(run(network, device, images[:count]), [part[:count] for part in together])


def test_a_head_that_is_not_known_stays_onnx(device, tmp_path):
    path = served_network(tmp_path / "model.onnx", attention=False)
    model = onnx.load(path)
    half = next(node for node in model.graph.node if node.op_type == "Div" and node.input[0] != "transpose1_0")
    constant = next(tensor for tensor in model.graph.initializer if tensor.name == half.input[1])
    constant.CopyFrom(onnx.numpy_helper.from_array(np.float32(2.5), constant.name))  # boxes that lie elsewhere
    onnx.save(model, path)
    network = fused(path, device)
    assert network.layers.head is None
    assert network.layers.segments == 1
    images = pictures(MOST)
    assert_same(run(network, device, images), by_onnx(path, images))


def test_convolutions_take_what_follows_them_and_concatenations_cost_nothing(tmp_path):
    layers = layers_of(onnx.load(served_network(tmp_path / "model.onnx", attention=False))).layers
    convolutions = [layer for layer in layers if isinstance(layer, Convolution)]
    assert sum(len(layer.inputs) > 1 for layer in convolutions) == 1
    assert [type(layer).__name__ for layer in layers].count("Sum") == 2  # those by themselves; no copies
    # Boxes, classes and coefficients begin with one convolution of each level.
    assert [len(layer.weight) for layer in convolutions].count(3 * 32) == 2
    roots = {one.place()[0] for layer in layers for one in layer.outputs}
    assert all(one.parent is None for one in roots)


def test_slices_do_not_overlap(tmp_path):
    layers = layers_of(onnx.load(served_network(tmp_path / "model.onnx"))).layers
    written = {}
    for layer in layers:
        for one in layer.outputs:
            root, first = one.place()
            assert first % 8 == 0
            assert first + one.channels <= root.channels
            channels = written.setdefault(root, set())
            assert not channels.intersection(range(first, first + one.channels))
            channels.update(range(first, first + one.channels))
    for layer in layers:
        for one in layer.inputs:
            root, first = one.place()
            assert written[root].issuperset(range(first, first + one.channels))


def test_single_precision_stays_in_onnx_runtime(tmp_path):
    with pytest.raises(UnsupportedNetwork, match="none of its convolutions is in halves"):
        layers_of(onnx.load(served_network(tmp_path / "model.onnx", half=False)))


def test_without_cudnn_onnx_runtime_takes_the_network_and_the_log_says_so(tmp_path, monkeypatch):
    path = served_network(tmp_path / "model.onnx")

    class Whole:
        def __init__(self, path, device, max_batch_size):
            self.problems = []

    def missing(*_):
        raise ImportError("No module named 'cudnn'")

    monkeypatch.setattr("steps.gpu.fused_network.DeviceNetwork", Whole)
    monkeypatch.setattr("steps.gpu.fused_network.FusedNetwork", missing)
    network = open_network(path, None, 4)
    assert isinstance(network, Whole)
    assert "ONNX Runtime alone" in network.problems[0]
    assert "No module named 'cudnn'" in network.problems[0]


def test_a_slice_is_placed_in_its_parents():
    whole = Map(4, 4, 64)
    part = Map(4, 4, 32, whole, 32)
    assert Map(4, 4, 8, part, 16).place() == (whole, 48)
