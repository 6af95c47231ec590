"""The GPU's engine on every family's real graph, cuDNN and the GPU's ONNX Runtime replaced on the host."""

from __future__ import annotations

import os

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.cpu_profile import to_float16
from builder.export import load_export
from builder.families.head import find_head
from builder.surgery import graft_ends, make_batch_dynamic
from steps.gpu.fused_network import FusedNetwork
from tests.gpu.emulated import COMPILER, EmulatedDevice
from tests.gpu.stand_ins import HostConvolutions, host_segments
from tests.real_exports.cases import CASES, Case

pytestmark = [
    pytest.mark.skipif(
        "EXPORTS_VENV" not in os.environ, reason="an environment with ultralytics is missing; make test-exports runs it"
    ),
    pytest.mark.skipif(COMPILER is None, reason="g++ is missing; where it is: make test-exports"),
]
_TITLES = ("static", "dynamic=True", "nms=False")
_SERVED = [case for case in reversed(CASES) if case.title in _TITLES and not case.refused]
_CASES = list({(case.family, case.title): case for case in _SERVED}.values())


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return EmulatedDevice(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_layers_give_what_onnx_runtime_gives(case: Case, exports, device, tmp_path):
    size = case.input_size if case.options.get("dynamic") else None
    export = load_export(exports.folder / f"{case.name}.onnx", input_size=size)
    network = make_batch_dynamic(export)
    path = tmp_path / "model.onnx"
    half = to_float16(network, find_head(network, export.detections_name).decode_nodes)
    onnx.save(graft_ends(half, export), path)
    exact = graft_ends(network, export).SerializeToString()
    files = sorted((exports.pictures / "{}x{}".format(*case.input_size)).glob("*.png"))[:2]
    images = np.stack([cv2.imread(str(file))[..., ::-1] for file in files])

    fused = FusedNetwork(path, device, len(images), HostConvolutions(), host_segments)
    device.upload(fused.images, np.ascontiguousarray(images))
    fused.run(len(images))
    out = fused.outputs
    candidates = np.zeros((len(images), out.rows, out.columns), np.float32)
    prototypes = np.zeros((len(images), out.columns - 6, out.cells_high, out.cells_wide), np.float16)
    device.download(candidates, out.candidates)
    device.download(prototypes, out.prototypes)

    def run(model):
        return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": images})

    (wanted, planes), (halves, half_planes) = run(exact), run(path)
    # Random weights of tiny width: halves alone are some percent off, and boxes some pixels.
    assert _off(prototypes, planes) < 2 * _off(half_planes, planes) + 2e-3
    for rows, others, by_onnx in zip(candidates, wanted, halves, strict=True):
        certain = int((others[:, 0] > 0.1).sum())
        assert certain > 5
        ours, theirs = _distances(rows, others[:certain]), _distances(by_onnx, others[:certain])
        assert np.median(ours) < 3 * np.median(theirs) + 0.3


def _off(one, other):
    return np.linalg.norm(one.astype(float) - other) / np.linalg.norm(other.astype(float))


def _distances(rows, others):
    """How far the nearest box of nearly the same score lies from each of the others, in pixels."""
    near = np.abs(rows[None, :, 1:5] - others[:, None, 1:5]).max(2)
    near[np.abs(rows[None, :, 0] - others[:, None, 0]) > 0.05] = 1e3
    return near.min(1)
