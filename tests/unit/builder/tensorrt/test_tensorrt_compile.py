"""Real plans of a small network with TensorRT-RTX, which builds them without a GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest

from builder.settings import PlanSettings
from builder.tensorrt.compile import compile_plan
from builder.tensorrt.errors import OnnxParseError, PlanBuildError, PlanMemoryError, TensorRTError
from builder.tensorrt.failures import parse_build_log, parse_problems
from builder.tensorrt.fallback import build_with_fallback
from builder.tensorrt.graph_names import GraphNames
from builder.tensorrt.layers import NETWORK
from repository.flavor import Flavor, detect_flavor

SMALL = PlanSettings(min_batch=1, opt_batch=2, max_batch=4, workspace_mib=256)


@pytest.fixture
def flavor() -> Flavor:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is missing; make test-tensorrt runs it")
    return detect_flavor("tensorrt-rtx")


def test_fp32(flavor, network_path):
    plan = compile_plan(network_path, SMALL, flavor)
    assert len(plan.plan) > 10_000
    assert (plan.flavor, plan.batches) == ("tensorrt-rtx", (1, 2, 4))
    assert plan.tensorrt_version == flavor.version_text
    assert plan.counts.convolutions == {"fp32": 8}
    assert plan.counts.layers["fp32"] > 20
    assert plan.can_run_here or plan.counts.source == NETWORK
    assert any(line.severity == "VERBOSE" for line in plan.log)
    assert not [line for line in plan.log if line.is_error]


def test_int8_is_counted_by_its_quantizers(flavor, network, quantize, tmp_path):
    onnx.save(quantize(network, frozenset({"/m1/Conv", "/dfl/conv/Conv"})), tmp_path / "q.onnx")
    assert compile_plan(tmp_path / "q.onnx", SMALL, flavor).counts.convolutions == {"int8": 6, "fp32": 2}


def test_a_failed_build_raises_with_its_log(flavor, network_path):
    # TensorRT-RTX builds no version compatible plans; posing as TensorRT makes it refuse for real.
    posing = Flavor("tensorrt", (10, 13, 0), flavor.module)
    with pytest.raises(PlanBuildError, match=r"TensorRT 10\.13\.0 built no plan from network\.onnx") as caught:
        compile_plan(network_path, PlanSettings(version_compatible=True), posing)
    errors = [line for line in caught.value.lines if line.is_error]
    assert errors
    graph = GraphNames.from_file(network_path)
    assert parse_build_log(caught.value.lines, graph).reason.startswith(errors[0].text)
    with pytest.raises(TensorRTError, match="Stopped because no further node"):
        build_with_fallback(
            lambda excluded: network_path,
            lambda path: compile_plan(path, PlanSettings(version_compatible=True), posing),
        )


def test_a_workspace_that_does_not_suffice_is_named_with_what_helps(flavor, network, quantize, tmp_path):
    """The real TensorRT-RTX runs out of memory; each way out of the message builds."""
    for name, model in (("fp32", network), ("int8", quantize(network, frozenset()))):
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        with pytest.raises(
            PlanMemoryError, match=r"Error Code 2: OutOfMemory \(Requested size was \d+ bytes"
        ) as caught:
            build_with_fallback(
                lambda excluded, path=path: path,
                lambda path: compile_plan(path, PlanSettings(max_batch=64, workspace_mib=16), flavor),
            )
        message = str(caught.value)
        assert "workspace limit is 16 MiB" in message
        assert "batches of up to 64" in message
        assert "--max-batch 32" in message
        assert "--workspace-mib 32" in message
        assert "internal error" not in message
        assert "calibrat" not in message
        assert compile_plan(path, PlanSettings(max_batch=32, workspace_mib=16), flavor).plan
        assert compile_plan(path, PlanSettings(max_batch=64, workspace_mib=32), flavor).plan


def asymmetric(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The same with a zero point that TensorRT does not take, where the tensor is still quantized."""
    zero = onnx.numpy_helper.from_array(np.int8(3), f"{tensor}_zero_point")
    for node in model.graph.node:
        if node.name in (f"{tensor}_QuantizeLinear", f"{tensor}_DequantizeLinear"):
            node.input[2] = zero.name
    model.graph.initializer.append(zero)
    return model


def test_quantizers_that_the_parser_refuses_are_left_out(flavor, network, quantize, tmp_path):
    def make_onnx(excluded: frozenset[str]) -> Path:
        path = tmp_path / f"{len(excluded)}.onnx"
        onnx.save(asymmetric(quantize(network, excluded), "/m0/Mul_output_0"), path)
        return path

    with pytest.raises(OnnxParseError, match="Non-zero zero point is not supported"):
        compile_plan(make_onnx(frozenset()), SMALL, flavor)
    result = build_with_fallback(make_onnx, lambda path: compile_plan(path, SMALL, flavor))
    assert [attempt.succeeded for attempt in result.attempts] == [False, True]
    assert result.excluded == ("/m1/Conv",)  # the one that reads the tensor
    assert "/m0/Mul_output_0_QuantizeLinear" in result.attempts[0].failed_layers
    assert result.plan.counts.convolutions == {"int8": 7, "fp32": 1}


def test_a_network_that_the_parser_refuses_anyway_stops_at_once(flavor, network, quantize, tmp_path):
    odd = next(node for node in network.graph.node if node.name == "/dfl/Softmax")
    odd.op_type, odd.domain = "Softestmax", "nowhere"
    network.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(network, tmp_path / "odd.onnx")
    with pytest.raises(TensorRTError, match=r"(?s)does not parse.*/dfl/Softmax.*no further node") as caught:
        build_with_fallback(lambda excluded: tmp_path / "odd.onnx", lambda path: compile_plan(path, SMALL, flavor))
    assert "keep fp16" not in str(caught.value)  # fp16 would fail, too


def test_parser_errors_name_node_and_operator(flavor, network, tmp_path):
    odd = next(node for node in network.graph.node if node.name == "/dfl/Softmax")
    odd.op_type, odd.domain = "Softestmax", "nowhere"
    network.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(network, tmp_path / "odd.onnx")
    with pytest.raises(OnnxParseError, match=r"/dfl/Softmax.*Softestmax") as caught:
        compile_plan(tmp_path / "odd.onnx", SMALL, flavor)
    assert caught.value.problems
    assert caught.value.lines


@pytest.mark.parametrize("operator", ["Det", "Unique", "Bernoulli"])
def test_an_operator_of_onnx_that_tensorrt_lacks_is_named(flavor, network, tmp_path, operator):
    """TensorRT-RTX itself says "false" of it."""
    odd = next(node for node in network.graph.node if node.name == "/head/Sigmoid")
    odd.op_type = operator
    onnx.save(network, tmp_path / "odd.onnx")
    with pytest.raises(OnnxParseError) as caught:
        compile_plan(tmp_path / "odd.onnx", SMALL, flavor)
    message = str(caught.value)
    assert f"node '/head/Sigmoid' ({operator}): TensorRT-RTX {flavor.version_text} has no such operator" in message
    assert "--profile cpu" in message
    failed = parse_problems(caught.value.problems, GraphNames.from_file(tmp_path / "odd.onnx"))
    assert failed.nodes == ("/head/Sigmoid",)


def test_a_file_that_is_no_onnx(flavor, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(OnnxParseError, match=r"does not parse bad\.onnx"):
        compile_plan(tmp_path / "bad.onnx", SMALL, flavor)
    with pytest.raises(TensorRTError, match="no such ONNX file"):
        compile_plan(tmp_path / "none.onnx", SMALL, flavor)


def test_an_error_keeps_no_tensorrt_object_alive(flavor, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not an ONNX file")
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(OnnxParseError) as caught:
            compile_plan(tmp_path / "bad.onnx", SMALL, flavor)
        assert caught.value.lines
        assert [found for found in gc.get_objects() if isinstance(found, flavor.module.ILogger)] == []
    finally:
        gc.enable()


def test_inputs_other_than_the_contracts_are_refused(flavor, network, tmp_path):
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(network, tmp_path / "static.onnx")
    with pytest.raises(TensorRTError, match="only the batch dynamic"):
        compile_plan(tmp_path / "static.onnx", SMALL, flavor)
    network.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(network, tmp_path / "float.onnx")
    with pytest.raises(TensorRTError, match=r"images FLOAT.*expected: images UINT8"):
        compile_plan(tmp_path / "float.onnx", SMALL, flavor)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_timing_cache_is_written_and_a_foreign_one_replaced(flavor, network_path, tmp_path):
    cache = tmp_path / "cache" / "timing.bin"
    settings = PlanSettings(timing_cache=cache, max_batch=8)
    compile_plan(network_path, settings, flavor)
    assert not cache.exists()  # TensorRT-RTX has no use for one
    flavor = Flavor("tensorrt", (10, 13, 0), flavor.module)
    compile_plan(network_path, settings, flavor)
    written = cache.read_bytes()
    assert written
    cache.write_bytes(b"of another TensorRT")
    compile_plan(network_path, settings, flavor)
    assert cache.read_bytes()[:4] == written[:4]
    assert [path.name for path in cache.parent.iterdir()] == ["timing.bin"]


def test_compatibility_is_refused_on_rtx(flavor, network_path):
    for settings in (PlanSettings(version_compatible=True), PlanSettings(hardware_compatible="ampere_plus")):
        with pytest.raises(TensorRTError, match="leave version_compatible and hardware_compatible out"):
            compile_plan(network_path, settings, flavor)


def test_importing_the_package_imports_no_toolchain():
    import subprocess
    import sys

    root = Path(__file__).parents[4]
    code = (
        "import sys, builder.tensorrt.profile\n"
        "print([name for name in ('tensorrt', 'tensorrt_rtx_bindings', 'modelopt', 'torch') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
