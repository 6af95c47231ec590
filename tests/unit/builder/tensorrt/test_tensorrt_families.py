"""Every family's grafted graph as a plan in each precision, by the real ModelOpt and TensorRT-RTX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.export import Export, load_export
from builder.quantizers import quantized_convolutions
from builder.settings import PlanSettings
from builder.surgery import graft_ends, make_batch_dynamic
from builder.tensorrt.autocast import convert_to_fp16
from builder.tensorrt.compile import compile_plan
from builder.tensorrt.exclusions import fp16_exclusions, int8_exclusions
from builder.tensorrt.ptq import quantize
from pipeline import contract
from repository.flavor import Flavor, detect_flavor
from tests.exports import STRIDES, segmentation_export
from tests.families import (
    end_to_end_export,
    objectness_export,
    old_end_to_end_export,
    query_export,
    suppressed_export,
)

HEIGHT, WIDTH = 64, 128
BATCHES = PlanSettings(min_batch=1, opt_batch=2, max_batch=4, workspace_mib=256)
P6 = (*STRIDES, 64)
MAKERS: dict[str, Callable[..., Path]] = {
    "yolo": segmentation_export,
    "yolo, dynamic": functools.partial(segmentation_export, batch=None),
    "yolo, batch 4": functools.partial(segmentation_export, batch=4),
    "yolo, P6": functools.partial(segmentation_export, strides=P6),
    "end to end": end_to_end_export,
    "end to end before 8.4.142": old_end_to_end_export,
    "suppressed": suppressed_export,
    "yolov5": objectness_export,
    "rf-detr": query_export,
}


@pytest.fixture(scope="module", params=MAKERS)
def family(request, tmp_path_factory) -> tuple[Export, onnx.ModelProto, tuple[int, ...]]:
    """An export, its grafted graph, and the strides of its heads."""
    path = tmp_path_factory.mktemp("family") / "export.onnx"
    export = load_export(MAKERS[request.param](path, height=HEIGHT, width=WIDTH), input_size=(HEIGHT, WIDTH))
    strides = P6 if request.param.endswith("P6") else STRIDES
    return export, graft_ends(make_batch_dynamic(export), export), strides


def test_what_stays_out_of_int8_follows_from_the_head(family):
    export, network, strides = family
    groups = int8_exclusions(network)
    convolutions, decoding = (group.nodes for group in groups)
    assert convolutions == tuple(f"head{stride}" for stride in strides)
    assert fp16_exclusions(network)[0].nodes == decoding
    between = {node.name: node for node in network.graph.node if node.name in decoding}
    assert not {node.op_type for node in between.values()} & {"Conv", "ConvTranspose"}
    made = {output for node in between.values() for output in node.output}
    assert {export.detections_name, *export.layout.further, contract.CANDIDATES.name} <= made
    read = {name for node in between.values() for name in node.input}
    assert {f"head{stride}" for stride in strides} <= read


@pytest.fixture(scope="module")
def flavor() -> Flavor:
    for package, what in (("modelopt", "ModelOpt"), ("tensorrt_rtx_bindings", "TensorRT-RTX")):
        pytest.importorskip(package, reason=f"{what} is missing; make test-tensorrt runs it")
    return detect_flavor("tensorrt-rtx")


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_a_plan_for_every_batch(flavor, family, tmp_path, precision):
    _, network, strides = family
    path = tmp_path / "model.onnx"
    images = np.random.default_rng(3).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    onnx.save(network, path)
    if precision == "int8":
        quantized = quantize(path, images).model
        # The stems and the prototypes; nothing that was left out.
        assert set(quantized_convolutions(quantized)) == {*(f"stem{stride}" for stride in strides), "output1"}
        onnx.save(quantized, path)
    if precision != "fp32":
        onnx.save(convert_to_fp16(path, images)[0], path)
    plan = compile_plan(path, BATCHES, flavor)
    assert plan.batches == (1, 2, 4)
    assert not [line for line in plan.log if line.is_error]
    heads, others = len(strides), len(strides) + 1
    wanted = {"fp16": heads, "int8": others} if precision == "int8" else {precision: heads + others}
    assert plan.counts.convolutions == wanted

    def best(model: onnx.ModelProto) -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        candidates, _ = session.run([contract.CANDIDATES.name, contract.PROTOTYPES.name], {"images": images})
        return candidates[..., 0]

    # The plan does not run without a GPU; what it was built from does, and is still the same network.
    tolerance = {"fp32": 0, "fp16": 2e-3, "int8": 0.05}
    np.testing.assert_allclose(best(onnx.load(path)), best(network), atol=tolerance[precision])
