"""A hostile file ends its own process, in bounded time and memory, and the builder says why."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.build import build
from builder.errors import ExportError
from builder.export import load_export
from builder.first_run import Limits
from builder.settings import load_settings
from tests.exports import segmentation_export
from tests.unit.builder.test_build import quiet

TERA = 1 << 40
SMALL, BRIEF = Limits(time_s=120, memory_mib=2048), Limits(time_s=2, memory_mib=2048)
TOO_LARGE, TOO_LONG = r"more than 2048 MiB .*inspection\.memory_mib", r"more than 2 s.*inspection\.time_s"


def refused(path, match, limits=SMALL):
    with pytest.raises(ExportError, match=match):
        load_export(path, limits=limits)


def hostile(tmp_path, *nodes, functions=(), **tensors):
    """An export whose scores wait for the tensor ``evil``, a float that the ``nodes`` make."""
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    for name, value in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    concat = next(node for node in model.graph.node if node.name == "detections")
    concat.input[1] = "late_scores"
    late = helper.make_node("Mul", ["scores", "evil"], ["late_scores"])
    at = list(model.graph.node).index(concat)
    for node in (late, *reversed(nodes)):
        model.graph.node.insert(at, node)
    model.functions.extend(functions)
    if functions:
        model.opset_import.append(helper.make_opsetid("bomb", 1))
    onnx.save(model, path)
    return path


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=f"make_{output}", **attributes)


def loop(inputs="rounds go start"):
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("v", 1))]
    outputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("c_out", 9), ("v_out", 1))]
    body = [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Identity", ["v"], ["v_out"])]
    return node("Loop", inputs, "evil", body=helper.make_graph(body, "body", values, outputs))


def test_a_loop_of_2_to_62_rounds_is_refused(tmp_path):
    path = hostile(tmp_path, loop(), rounds=np.int64(1 << 62), go=True, start=np.float32(1))
    refused(path, r"control flow \(node 'make_evil', operator Loop\)")


def test_a_condition_is_refused(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["start"], ["out"])], "b", [], [helper.make_tensor_value_info("out", 1, [])]
    )
    path = hostile(
        tmp_path, node("If", "go", "evil", then_branch=branch, else_branch=branch), go=True, start=np.float32(1)
    )
    refused(path, r"control flow .*operator If")


def test_a_loop_inside_a_function_is_refused(tmp_path):
    inner = helper.make_function(
        "bomb", "f", ["rounds", "go", "start"], ["evil"], [loop()], [helper.make_opsetid("", 17)]
    )
    call = node("f", "rounds go start", "evil", domain="bomb")
    path = hostile(tmp_path, call, functions=[inner], rounds=np.int64(1 << 62), go=True, start=np.float32(1))
    refused(path, r"control flow .*operator Loop")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", "shape", "much"), node("ReduceMax", "much", "evil", keepdims=0)],
        [
            node("ReduceMax", "images", "pixel", keepdims=0),
            node("Expand", "pixel shape", "much"),
            node("ReduceMax", "much", "evil", keepdims=0),
        ],
    ],
    ids=["ConstantOfShape", "Expand"],
)
def test_a_tensor_of_terabytes_ends_its_process_alone(tmp_path, nodes):
    refused(hostile(tmp_path, *nodes, shape=[TERA]), TOO_LARGE)


def test_weights_that_claim_terabytes_are_refused(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = TERA
    onnx.save(model, path)
    refused(path, f"'stem8.weight' do not fill their shape {TERA}x")


def test_a_file_of_weights_of_a_terabyte_ends_its_process_alone(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    with (tmp_path / "m.data").open("ab") as file:
        file.truncate(TERA)  # sparse: it takes no space on the disk
    refused(path, TOO_LONG, BRIEF)


def test_a_run_without_end_is_ended(tmp_path):
    chain = [node("MatMul", f"m{index} m{index}", f"m{index + 1}") for index in range(500)]
    nodes = [node("ConstantOfShape", "shape", "m0"), *chain, node("ReduceMax", "m500", "evil", keepdims=0)]
    refused(hostile(tmp_path, *nodes, shape=[4096, 4096]), TOO_LONG, BRIEF)


def test_functions_that_unfold_into_2_to_40_nodes_are_ended(tmp_path):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    functions = [helper.make_function("bomb", "f0", ["x"], ["z"], [helper.make_node("Abs", ["x"], ["z"])], opsets)]
    for level in range(40):
        twice = [helper.make_node(f"f{level}", [a], [b], domain="bomb") for a, b in (("x", "y"), ("y", "z"))]
        functions.append(helper.make_function("bomb", f"f{level + 1}", ["x"], ["z"], twice, opsets))
    path = hostile(tmp_path, node("f40", "start", "evil", domain="bomb"), functions=functions, start=np.float32(1))
    refused(path, f"{TOO_LARGE}|{TOO_LONG}|died of", BRIEF)


@pytest.mark.parametrize("operator", ["Expand", "Range"])
def test_a_size_that_depends_on_pixels_is_refused(tmp_path, operator):
    """The first run is on empty images: it would pass, and the first white image would take terabytes."""
    pixels = [node("ReduceMax", "images", "light", keepdims=0), node("Mul", "light many", "product")]
    size = [node("Cast", "product", "count", to=TensorProto.INT64), node("Add", "count one", "amount")]
    if operator == "Expand":
        size += [node("Reshape", "amount first", "shape"), node("Expand", "start shape", "much")]
    else:
        size += [node("Range", "zero amount one", "steps"), node("Cast", "steps", "much", to=TensorProto.FLOAT)]
    path = hostile(
        tmp_path,
        *pixels,
        *size,
        node("ReduceMax", "much", "evil", keepdims=0),
        many=np.float32(TERA),
        one=np.int64(1),
        zero=np.int64(0),
        first=[1],
        start=np.float32(1),
    )
    refused(path, rf"depends on the image's pixels .*operator {operator}")


def test_the_builder_does_not_load_the_file_before(tmp_path, monkeypatch):
    path = segmentation_export(tmp_path / "m.onnx")

    def here(*_, **__):
        raise AssertionError("ONNX Runtime ran in the builder's own process")

    monkeypatch.setattr(ort, "InferenceSession", here)
    assert load_export(path).num_classes == 3


def test_a_build_takes_the_limits_from_its_settings(tmp_path):
    path = hostile(tmp_path, node("ConstantOfShape", "shape", "much"), node("ReduceMax", "much", "evil"), shape=[TERA])
    settings = load_settings(None, {"onnx": path, "inspection.memory_mib": 2050, "repository": tmp_path / "r"})
    with pytest.raises(ExportError, match=r"more than 2050 MiB.*Allowed: inspection\.memory_mib = 2050\. .*4100"):
        build(settings, quiet())
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("kill -SEGV $$", "died of SIGSEGV.*damaged or hostile.*inspection.memory_mib"),
        ("kill -KILL $$", "ran out of memory"),
        ("echo out of luck >&2; exit 3", r"status 3 \(out of luck\)"),
    ],
)
def test_a_process_that_dies_is_said(tmp_path, monkeypatch, end, words):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    refused(segmentation_export(tmp_path / "m.onnx"), words)


def test_nothing_comes_from_the_working_folder(tmp_path, monkeypatch):
    path = segmentation_export(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    for name in ("onnx.py", "json.py", "resource.py", "builder.py"):
        Path(name).write_text("import os; os._exit(66)")
    assert load_export(path).num_classes == 3
