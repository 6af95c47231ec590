"""Log lines are quoted from public issues; the address is beside each."""

# ruff: noqa: E501 (log lines as they were written)

from __future__ import annotations

import pytest

from builder.tensorrt.advice import memory_ways_out, ways_out
from builder.tensorrt.errors import LogLine
from builder.tensorrt.failures import FailedNodes, out_of_memory, parse_build_log, split_layer
from builder.tensorrt.graph_names import GraphNames, GraphNode

CV3 = ("/model.22/proto/cv3/conv/Conv", "/model.22/proto/cv3/act/Sigmoid", "/model.22/proto/cv3/act/Mul")
CV3_FUSED = "/model.22/proto/cv3/conv/Conv + PWN(PWN(/model.22/proto/cv3/act/Sigmoid), /model.22/proto/cv3/act/Mul)"

REAL_LOGS = [
    pytest.param(  # https://github.com/NVIDIA/TensorRT/issues/4555
        [
            f"[08/14/2025-19:33:23] [E] Error[10]: Could not find any implementation for node {CV3_FUSED}.",
            "[08/14/2025-19:33:23] [E] Error[10]: [optimizer.cpp::nvinfer1::builder::cgraph::LeafCNode::computeCosts::"
            f"3869] Error Code 10: Internal Error (Could not find any implementation for node {CV3_FUSED}.)",
        ],
        CV3,
        {10},
        id="TensorRT-4555",
    ),
    pytest.param(  # https://github.com/NVIDIA/TensorRT/issues/3640 (title and first line)
        [
            "Could not find any implementation for node /model.0/conv/Conv + PWN(PWN(/model.0/act/Sigmoid), "
            "/model.0/act/Mul)"
        ],
        ("/model.0/conv/Conv", "/model.0/act/Sigmoid", "/model.0/act/Mul"),
        set(),
        id="TensorRT-3640",
    ),
    pytest.param(  # https://github.com/NVIDIA/Model-Optimizer/issues/50
        [
            "[08/02/2024-14:23:01] [E] Error[10]: Could not find any implementation for node model.10.attn.pe.conv.weight"
            " + model.10.attn.pe.conv.weight_QuantizeLinear + /model.10/attn/pe/conv/Conv + /model.10/attn/Add.",
            "[08/02/2024-14:23:01] [E] Engine could not be created from network",
            "[08/02/2024-14:23:01] [E] Building engine failed",
        ],
        ("/model.10/attn/pe/conv/Conv", "/model.10/attn/Add"),
        {10},
        id="Model-Optimizer-50",
    ),
    pytest.param(  # https://github.com/jws92/YOLOv8-TensorRT/issues/2
        [
            "[05/11/2024-09:13:04] [TRT] [E] 10: Could not find any implementation for node Conv_74 + PWN(PWN(Sigmoid_75)"
            ", Mul_76).",
            "[05/11/2024-09:13:04] [TRT] [E] 10: [optimizer.cpp::nvinfer1::builder::cgraph::LeafCNode::computeCosts::3873]"
            " Error Code 10: Internal Error (Could not find any implementation for node Conv_74 + PWN(PWN(Sigmoid_75), "
            "Mul_76).)",
            "Failed to building TRT engine!",
        ],
        ("Conv_74", "Sigmoid_75", "Mul_76"),
        {10},
        id="YOLOv8-TensorRT-2",
    ),
    pytest.param(  # https://github.com/NVIDIA/TensorRT/issues/1766
        [
            "[optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error (Could not find any implementation for node "
            "ArgMax_260.)"
        ],
        ("ArgMax_260",),
        {10},
        id="TensorRT-1766",
    ),
    pytest.param(  # https://github.com/onnx/onnx-tensorrt/issues/564
        [
            "[2020-11-10 13:45:42   ERROR] ../builder/tacticOptimizer.cpp (1715) - TRTInternal Error in computeCosts: 0 "
            "(Could not find any implementation for node ArgMax_532.)"
        ],
        ("ArgMax_532",),
        set(),
        id="onnx-tensorrt-564",
    ),
]


def chain(*names: str) -> GraphNames:
    """Nodes one after the other; each reads the tensor that the one before writes."""
    nodes = []
    source = "input"
    for name in names:
        operator = name.rsplit("/", 1)[-1].split("_")[0]
        nodes.append(GraphNode(name, operator, (source,), (f"{name}_output_0",)))
        source = f"{name}_output_0"
    return GraphNames(tuple(nodes))


def errors(*texts: str) -> list[LogLine]:
    return [LogLine("ERROR", text) for text in texts]


@pytest.mark.parametrize(("lines", "nodes", "codes"), REAL_LOGS)
def test_real_logs(lines, nodes, codes):
    failed = parse_build_log(errors(*lines), chain(*nodes, "/elsewhere/Conv"))
    assert failed.nodes == nodes
    assert set(failed.error_codes) == codes
    assert len(failed.raw) == 1
    assert failed.reason.startswith("no implementation for ")
    assert not failed.insufficient_workspace


def test_3385_with_its_graph():
    # https://github.com/NVIDIA/TensorRT/issues/3385: TensorRT calls an unnamed node node_of_<its output>
    graph = GraphNames(
        (
            GraphNode("q", "QuantizeLinear", ("w", "s"), ("w_q",)),
            GraphNode("dq", "DequantizeLinear", ("w_q", "s"), ("w_dq",)),
            GraphNode("conv", "Conv", ("x", "w_dq"), ("dqconv.dwconv",)),
            GraphNode("sigmoid", "Sigmoid", ("dqconv.dwconv",), ("swish.sigmoid",)),
            GraphNode("mul", "Mul", ("dqconv.dwconv", "swish.sigmoid"), ("swish.mul",)),
        ),
        frozenset({"w", "s"}),
    )
    line = (
        "[E] Error[10]: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any "
        "implementation for node w + node_of_dqconv.dwconv + PWN(node_of_swish.sigmoid, node_of_swish.mul).)"
    )
    failed = parse_build_log(errors(line), graph)
    assert (failed.nodes, failed.unresolved) == (("conv", "sigmoid", "mul"), ())
    assert graph.quantizer_carriers(failed.nodes) == ("conv",)


def test_3051_as_far_as_its_log_is_kept():
    # https://github.com/NVIDIA/TensorRT/issues/3051: YOLOv8n-seg, TensorRT 8.6, --int8 without calibration.
    line = "[06/06/2023-15:19:51] [E] Error[10]: Could not find any implementation fo"
    failed = parse_build_log(errors(line), chain(*CV3))
    assert (failed.nodes, failed.raw, failed.error_codes) == ((), (), (10,))
    assert "Could not find any implementation fo" in failed.reason
    assert "unsupported state" in failed.reason
    whole = parse_build_log(
        errors(f"{line}r node {CV3_FUSED}."), chain(*CV3)
    )  # the same network's failing layer, from 4555
    assert whole.nodes == CV3


def test_layers_built_without_names_stay_unresolved():
    # https://github.com/wang-xinyu/tensorrtx/issues/1546: built through the API, so no layer has an ONNX name
    layer = (
        "(Unnamed Layer* 351) [Convolution] + (Unnamed Layer* 352) [Scale] + PWN(PWN((Unnamed Layer* 353) [Activation]), "
        "(Unnamed Layer* 354) [ElementWise])"
    )
    line = f"[06/28/2024-09:34:46] [E] [TRT] 10: Could not find any implementation for node {layer}."
    failed = parse_build_log(errors(line), chain("/a/Conv"))
    assert failed.nodes == ()
    assert failed.raw == (layer,)
    assert failed.unresolved == (
        "(Unnamed Layer* 351) [Convolution]",
        "(Unnamed Layer* 352) [Scale]",
        "(Unnamed Layer* 353) [Activation]",
        "(Unnamed Layer* 354) [ElementWise]",
    )


def test_a_foreign_node_is_the_whole_range():
    graph = chain("/a/Conv", "/b/Reshape", "/c/Transpose", "/d/Softmax", "/e/Conv")
    # The form of https://github.com/open-mmlab/mmdeploy/issues/2381, with another network's names.
    line = "[E] 10: Could not find any implementation for node {ForeignNode[/b/Reshape.../d/Softmax]}."
    assert parse_build_log(errors(line), graph).nodes == ("/b/Reshape", "/c/Transpose", "/d/Softmax")


def test_a_foreign_nodes_ends_may_be_fused_or_unnamed():
    graph = chain("/a/Conv", "/b/Equal", "/c/Add", "/d/Transpose", "/d/Reshape", "/e/Conv")
    fused = "[E] 10: Could not find any implementation for node {ForeignNode[/b/Equal.../d/Transpose + /d/Reshape]}."
    assert parse_build_log(errors(fused), graph).nodes == ("/b/Equal", "/c/Add", "/d/Transpose", "/d/Reshape")
    # https://github.com/Wanglaoban3/sparsedrive-tensorrt-deploy-implement/issues/3
    unnamed = (
        "[TRT] [E] 10: Could not find any implementation for node {ForeignNode[(Unnamed Layer* 1247) [Shuffle]..."
        "/layers.7/Transpose_2 + /layers.7/Reshape_4]}."
    )
    failed = parse_build_log(errors(unnamed), chain("/layers.7/Reshape_4"))
    assert failed.nodes == ("/layers.7/Reshape_4",)
    assert failed.unresolved == ("(Unnamed Layer* 1247) [Shuffle]",)


def test_parts_of_fused_names():
    assert split_layer("A || B || C") == ("A", "B", "C")
    assert split_layer("A + PWN(PWN(B), C)") == ("A", "B", "C")
    assert split_layer("[trainStation1]") == ()
    assert split_layer("A + [trainStation12]") == ("A",)
    assert split_layer("Reformatting CopyNode for Input Tensor 0 to /m/Conv") == ("/m/Conv",)
    assert split_layer("w + {ForeignNode[A...B]}") == ("{ForeignNode[A...B]}", "w")


def test_a_train_station_alone_names_nothing():
    line = "[E] Error[10]: Could not find any implementation for node [trainStation1]."
    failed = parse_build_log(errors(line), chain("/a/Conv"))
    assert (failed.nodes, failed.unresolved, failed.raw) == ((), (), ("[trainStation1]",))


@pytest.mark.parametrize(
    ("layer", "nodes"),
    [
        ("/m1.weight + /m1.weight_QuantizeLinear + /m1/Conv", ("/m1/Conv",)),
        ("/m1.weight", ("/m1/Conv",)),
        ("/m1.weight_QuantizeLinear", ("/m1/Conv",)),
        ("/m1.weight_DequantizeLinear", ("/m1/Conv",)),
        ("/m0/Mul_output_0_QuantizeLinear", ("/m0/act/Mul",)),
        ("/m0/Mul_output_0_DequantizeLinear", ("/m1/Conv",)),
        ("/m0/Mul_output_0", ("/m0/act/Mul",)),
        ("/m0/Conv_clone_1", ("/m0/Conv",)),
        ("node_of_/m1/Conv_output_0", ("/m1/Conv",)),
        ("/m0/Conv || /m1/Conv", ("/m0/Conv", "/m1/Conv")),
        ("/m1/Conv + PWN(PWN(/m1/act/Sigmoid), /m1/act/Mul)", ("/m1/Conv", "/m1/act/Sigmoid", "/m1/act/Mul")),
    ],
)
def test_weights_and_quantizers_stand_for_the_nodes_they_serve(network, quantize, layer, nodes):
    graph = GraphNames.from_model(quantize(network, frozenset()))
    failed = parse_build_log(errors(f"Error[10]: Could not find any implementation for node {layer}."), graph)
    assert failed.nodes == nodes
    assert failed.unresolved == ()
    assert failed.operators == {name: graph.by_name[name].operator for name in nodes}


def test_names_without_quantizers_in_the_graph_are_traced_by_their_tensor(network):
    graph = GraphNames.from_model(network)
    line = "[E] Error[10]: Could not find any implementation for node /m1.weight_QuantizeLinear + /gone/Conv."
    failed = parse_build_log(errors(line), graph)
    assert (failed.nodes, failed.unresolved) == (("/m1/Conv",), ("/gone/Conv",))


def test_the_workspace_is_blamed_when_the_log_blames_it():
    line = "Error Code 10: Internal Error (Could not find any implementation for node /m0/Conv due to insufficient workspace.)"
    failed = parse_build_log(errors(line), chain("/m0/Conv"))
    assert (failed.nodes, failed.insufficient_workspace) == (("/m0/Conv",), True)
    assert "raise the workspace (now 64 MiB) with --workspace-mib" in ways_out(failed, "TensorRT 10.3.0", (), 64)


def test_other_errors_are_searched_for_node_names():
    graph = chain("/m/Conv", "/m/Conv_1", "/m/Conv_11")
    lines = [
        LogLine("VERBOSE", "/m/Conv: fine"),
        LogLine("ERROR", "Error Code 4: Internal Error (/m/Conv_1: kernel weights has wrong type)"),
    ]
    failed = parse_build_log(lines, graph)
    assert (failed.nodes, failed.error_codes) == (("/m/Conv_1",), (4,))


def test_only_errors_of_captured_lines_count():
    text = "Could not find any implementation for node /m/Conv."
    graph = chain("/m/Conv")
    assert parse_build_log([LogLine("VERBOSE", text)], graph).nodes == ()
    assert parse_build_log(errors(text), graph).nodes == ("/m/Conv",)
    assert parse_build_log([], graph).reason == "the log holds no error"


def test_the_last_word_names_node_operator_version_and_ways_out():
    line = f"[E] Error[10]: Could not find any implementation for node {CV3_FUSED}."
    failed = parse_build_log(errors(line), chain(*CV3))
    text = ways_out(failed, "TensorRT 10.3.0", ("/model.0/conv/Conv",))
    for part in (
        "TensorRT 10.3.0",
        "/model.22/proto/cv3/conv/Conv (Conv)",
        "Left in higher precision already: /model.0/conv/Conv.",
        "--precisions fp32,fp16",
        "--exclude /model.22/proto/cv3/conv/Conv /model.22/proto/cv3/act/Sigmoid",
        "upgrade TensorRT",
    ):
        assert part in text
    nameless = FailedNodes((), ("x",), {}, ("(Unnamed Layer* 1) [Scale]",), (10,), "no implementation for x")
    assert "without an ONNX name: (Unnamed Layer* 1) [Scale]" in ways_out(nameless, "TensorRT 10.3.0", ())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_is_advised_fits_the_precision(precision):
    failed = parse_build_log(errors("Error Code 4: API Usage Error (Network validation failed.)"), chain(*CV3))
    text = ways_out(failed, "TensorRT 10.3.0", (), precision=precision)
    assert f"builds no {precision} plan" in text
    assert ("--precisions fp32,fp16" in text) == (precision == "int8")
    assert ("keep fp32" in text) == (precision == "fp16")
    assert "calibrat" not in text  # more images do not make a plan build


# Of TensorRT-RTX 1.7.1.116: YOLOv8s-seg exported by ultralytics, max_batch 64, workspace_mib 2048.
RTX_WORKSPACE = (
    "[localCheckMacros.cpp::getErrorStr::132] Error Code 2: OutOfMemory (Requested size was 2194893888 bytes.)"
)
MEMORY_LOGS = [
    pytest.param([("ERROR", RTX_WORKSPACE)], False, id="TensorRT-RTX"),
    pytest.param(  # https://github.com/marcoslucianops/DeepStream-Yolo/issues/366
        [
            (
                "ERROR",
                "2: [virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: OutOfMemory (no further information)",
            ),
            (
                "WARNING",
                "Requested amount of GPU memory (4294967296 bytes) could not be allocated. There may not be enough free memory for allocation to succeed.",
            ),
        ],
        True,
        id="DeepStream-Yolo-366",
    ),
    pytest.param(  # https://github.com/NVIDIA/TensorRT/issues/840 (title)
        [("ERROR", "Cuda Error in allocate: 2 (out of memory)")], True, id="TensorRT-840"
    ),
    pytest.param(
        [("ERROR", "[resizingAllocator.cpp::allocate::78] Error Code 1: Cuda Runtime (out of memory)")],
        True,
        id="TensorRT-10",
    ),
]


@pytest.mark.parametrize(("log", "of_the_gpu"), MEMORY_LOGS)
def test_a_build_without_enough_memory_is_recognized(log, of_the_gpu):
    lines = [LogLine(severity, text) for severity, text in log]
    said, blamed = out_of_memory(lines)
    assert (said, blamed) == (log[0][1], of_the_gpu)
    text = memory_ways_out(said, blamed, "TensorRT-RTX 1.7.1.116", (1, 8, 64), 2048)
    for words in (log[0][1], "workspace limit is 2048 MiB", "batches of up to 64", "--max-batch 32"):
        assert words in text
    # The ways out are opposite: a larger limit, or less of the GPU.
    assert ("--workspace-mib 4096" in text) != of_the_gpu
    assert ("--workspace-mib 1024" in text and "nvidia-smi" in text) == of_the_gpu


def test_memory_is_not_blamed_where_a_layer_is_named():
    named = "Error Code 10: Internal Error (Could not find any implementation for node /m0/Conv.)"
    lines = errors(RTX_WORKSPACE, named)
    assert out_of_memory(lines) is None
    assert parse_build_log(lines, chain("/m0/Conv")).nodes == ("/m0/Conv",)
    assert out_of_memory([LogLine("WARNING", RTX_WORKSPACE)]) is None


@pytest.mark.parametrize(
    ("batches", "advice"), [((1, 8, 8), "--max-batch 4 --opt-batch 4"), ((1, 1, 1), None), ((4, 4, 4), None)]
)
def test_a_smaller_batch_is_advised_where_there_is_one(batches, advice):
    text = memory_ways_out(RTX_WORKSPACE, False, "TensorRT-RTX", batches, 64)
    assert (advice in text) if advice else ("--max-batch" not in text)
