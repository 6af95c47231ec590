"""Which engine runs a version on which processor, and what happens when it does not."""

import functools
import importlib.util
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline import contract
from steps import cpu_engines, openvino_cpu
from steps.cpu_engines import ENGINE_VARIABLE, cpu_network
from steps.onnx_cpu import CpuNetwork, onnx_runtime_engine
from steps.openvino_cpu import EngineError, openvino_engine, usable_openvino

SIZE = 16
PROCESSORS = {
    "Xeon with AMX": "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n",
    "EPYC with AVX-512 BF16": "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n",
    "Xeon with VNNI": "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n",
    "older x86": "processor\t: 0\nflags\t\t: fpu sse4_2 avx2\nbugs\t\t: spectre_v1\n",
    "arm64": "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU implementer\t: 0x41\n",
    "nothing known": "",
}
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is missing (x86-64 alone has it); make test-unit runs it there",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A convolution over the pixels, of which prototypes and candidates are made, and an expectation as in DFL."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    batch = contract.BATCH_DIMENSION
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["features"], pads=[1, 1, 1, 1], strides=[4, 4]),
        helper.make_node("Cast", ["features"], ["prototypes"], to=TensorProto.FLOAT16),
        helper.make_node("Softmax", ["features"], ["distribution"], axis=1),
        helper.make_node("Conv", ["distribution", "steps"], ["expectation"]),
        helper.make_node("Concat", ["features", "expectation"], ["all"], axis=1),
        helper.make_node("Reshape", ["all", "rows"], ["candidates"]),
    ]
    side = SIZE // 4
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("candidates", TensorProto.FLOAT, [batch, 9, side * side]),
            helper.make_tensor_value_info("prototypes", TensorProto.FLOAT16, [batch, 8, side, side]),
        ],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel()),
            helper.make_tensor("steps", TensorProto.FLOAT, [1, 8, 1, 1], np.arange(8, dtype=np.float32)),
            helper.make_tensor("rows", TensorProto.INT64, [3], [0, 9, side * side]),
        ],
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def version(model, tmp_path):
    """Writes a version with a manifest."""

    def write(precision="fp16", **record):
        shutil.copy(model, tmp_path / "model.onnx")
        verification = {"engines": {"openvino": record} if record else {}}
        (tmp_path / "manifest.json").write_text(json.dumps({"precision": precision, "verification": verification}))
        return tmp_path / "model.onnx"

    return write


@pytest.fixture
def here(monkeypatch):
    """A machine that can run OpenVINO 9.1, in float32 as any x86-64 can."""
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(cpu_engines, "usable_openvino", lambda: "9.1")
    monkeypatch.setattr(cpu_engines, "openvino_engine", functools.partial(openvino_engine, precision="f32"))


def images(count):
    return list(np.random.default_rng(1).integers(0, 256, (count, 1, SIZE, SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_with_bfloat16_alone_use_openvino(name, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_cpu.metadata, "version", lambda package: {"openvino": "9.1"}[package])
    (tmp_path / "cpuinfo").write_text(PROCESSORS[name])
    if name in ("Xeon with AMX", "EPYC with AVX-512 BF16"):
        assert usable_openvino(tmp_path / "cpuinfo") == "9.1"
        monkeypatch.undo()
        monkeypatch.setattr(openvino_cpu, "NAME", "no-such-package")
        with pytest.raises(EngineError, match=r"not installed \(make openvino\)"):
            usable_openvino(tmp_path / "cpuinfo")
    else:
        with pytest.raises(EngineError, match="has none of amx_bf16, avx512_bf16"):
            usable_openvino(tmp_path / "cpuinfo")


@needs_openvino
def test_openvino_gives_what_onnx_runtime_gives_and_compiles_for_no_batch(model):
    opened = []

    def open_engine(path, threads):
        opened.append(threads)
        return openvino_engine(path, threads, "f32")

    one, other = CpuNetwork(model, 2, 8, open_engine), CpuNetwork(model, 2, 8)
    assert opened == [2, 1, 1]
    for count in (1, 2, 3, 4, 5, 8, 2, 1):
        batch = images(count)
        outputs = one.run(batch)
        for mine, its in zip(outputs, other.run(batch), strict=True):
            for array, expected in zip(mine, its, strict=True):
                assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
                np.testing.assert_allclose(array.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=0.5)
        again = one.run(batch)
        assert all(np.array_equal(a, b) for x, y in zip(outputs, again, strict=True) for a, b in zip(x, y, strict=True))
    assert len(opened) == 3
    first = one.run(images(1))[0][0]
    kept = first.copy()
    one.run([255 - images(1)[0]])
    assert np.array_equal(first, kept)  # the engine's own buffers are not handed out


@needs_openvino
def test_expectations_are_sums_and_other_convolutions_stay(model):
    openvino = importlib.import_module("openvino")
    network = openvino.Core().read_model(model)
    assert [node.get_type_name() for node in network.get_ops()].count("Convolution") == 2
    openvino_cpu._expectations_as_sums(openvino, network)
    kinds = [node.get_type_name() for node in network.get_ops()]
    assert kinds.count("Convolution") == kinds.count("ReduceSum") == 1


@needs_openvino
def test_a_version_whose_gate_passed_runs_in_openvino(version, here, monkeypatch):
    path = version(version="9.1", passed=True)
    for wanted in ("", "auto", "openvino"):
        monkeypatch.setenv(ENGINE_VARIABLE, wanted)
        network, text = cpu_network(path, 1, 1)
        assert text == "OpenVINO 9.1 in bfloat16"
        assert len(network.run(images(2))) == 2
    monkeypatch.setenv(ENGINE_VARIABLE, "onnxruntime")
    assert cpu_network(path, 1, 1)[1].startswith("ONNX Runtime ")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "its gate passed in ONNX Runtime alone, here is 9.1; build it on a machine like this one"),
        ({"version": "9.1", "passed": False}, "in ONNX Runtime alone"),
        ({"version": "9.0", "passed": True}, "its gate passed in 9.0, here is 9.1"),
        ({"version": "9.1", "passed": True}, "no implementation of an operation"),
    ],
    ids=["never gated", "gate failed", "another release", "does not compile"],
)
def test_else_onnx_runtime_runs_it_and_the_log_says_why(version, here, monkeypatch, record, reason):
    def fails(path, threads):
        raise RuntimeError("no implementation\nof an operation")

    monkeypatch.setattr(cpu_engines, "openvino_engine", fails)
    path = version(**record)
    network, text = cpu_network(path, 1, 1)
    assert text.startswith("ONNX Runtime ") and reason in text and "\n" not in text
    expected = onnx_runtime_engine(path, 1)(images(1)[0])
    assert all(map(np.array_equal, network.run(images(1))[0], expected))
    monkeypatch.setenv(ENGINE_VARIABLE, "openvino")
    with pytest.raises(EngineError, match=f"{ENGINE_VARIABLE} is openvino, which cannot run this version: "):
        cpu_network(path, 1, 1)


@pytest.mark.parametrize("fault", [ImportError("libtbb.so.12: cannot open"), SystemError("initialization failed")])
def test_a_package_that_does_not_load_is_no_reason_to_fail(version, here, monkeypatch, fault):
    def broken(name):
        raise fault

    monkeypatch.setattr(openvino_cpu.importlib, "import_module", broken)
    _, text = cpu_network(version(version="9.1", passed=True), 1, 1)
    assert text.startswith("ONNX Runtime ") and str(fault) in text


def test_other_precisions_and_bare_models_run_in_onnx_runtime(version, here, monkeypatch, model):
    monkeypatch.setenv(ENGINE_VARIABLE, "openvino")
    for path in (version("int8", version="9.1", passed=True), version("fp32"), model):
        _, text = cpu_network(path, 1, 1)
        assert text.startswith("ONNX Runtime ") and "OpenVINO" not in text


def test_an_unknown_engine_is_refused(version, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "fastest")
    with pytest.raises(ValueError, match="CPU_ENGINE is 'fastest'; allowed: auto, onnxruntime, openvino"):
        cpu_network(version(), 1, 1)
