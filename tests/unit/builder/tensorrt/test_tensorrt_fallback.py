from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from builder.tensorrt.errors import LogLine, PlanBuildError, TensorRTError
from builder.tensorrt.fallback import Attempt, FallbackError, build_with_fallback
from builder.tensorrt.graph_names import GraphNames


class Workshop:
    """Quantizes a real ONNX graph, and compiles it with a TensorRT that cannot do some nodes in int8."""

    def __init__(self, network, quantize, folder: Path, refused: dict[str, str]) -> None:
        self.network, self.quantize, self.folder = network, quantize, folder
        self.refused = refused
        self.asked: list[frozenset[str]] = []

    def make_onnx(self, excluded: frozenset[str]) -> Path:
        self.asked.append(excluded)
        path = self.folder / f"{len(self.asked)}.onnx"
        onnx.save(self.quantize(self.network, excluded), path)
        return path

    def compile(self, path: Path) -> bytes:
        graph = GraphNames.from_file(path)
        for node, layer in self.refused.items():
            if graph.is_quantized(node):
                text = f"Error Code 10: Internal Error (Could not find any implementation for node {layer}.)"
                lines = (LogLine("VERBOSE", f"=== Computing costs for {layer}"), LogLine("ERROR", text))
                raise PlanBuildError("no plan", lines)
        return b"plan of " + path.name.encode()


FUSED = {
    "/m0/Conv": "/m0/Conv + PWN(PWN(/m0/act/Sigmoid), /m0/act/Mul)",
    "/m2/Conv": "/m2.weight + /m2.weight_QuantizeLinear + /m2/Conv",
}


def test_a_build_that_succeeds_takes_one_attempt(network, quantize, tmp_path):
    shop = Workshop(network, quantize, tmp_path, {})
    result = build_with_fallback(shop.make_onnx, shop.compile)
    assert (result.plan, result.excluded, len(result.attempts)) == (b"plan of 1.onnx", (), 1)
    assert result.onnx_path == tmp_path / "1.onnx"


def test_refused_nodes_are_left_out_one_after_the_other(network, quantize, tmp_path):
    shop = Workshop(network, quantize, tmp_path, FUSED)
    seen: list[Attempt] = []
    result = build_with_fallback(shop.make_onnx, shop.compile, max_attempts=3, on_attempt=seen.append)
    assert shop.asked == [frozenset(), {"/m0/Conv"}, {"/m0/Conv", "/m2/Conv"}]
    assert result.plan == b"plan of 3.onnx"
    assert result.excluded == ("/m0/Conv", "/m2/Conv")
    assert tuple(seen) == result.attempts
    assert [attempt.succeeded for attempt in seen] == [False, False, True]
    assert seen[0].failed_layers == (FUSED["/m0/Conv"],)
    assert seen[0].failed_nodes == ("/m0/Conv", "/m0/act/Sigmoid", "/m0/act/Mul")
    assert (seen[0].added, seen[1].added, seen[2].added) == (("/m0/Conv",), ("/m2/Conv",), ())
    final = GraphNames.from_file(result.onnx_path)
    assert not final.is_quantized("/m0/Conv") and not final.is_quantized("/m2/Conv")
    assert final.is_quantized("/m1/Conv")


def test_attempts_are_json(network, quantize, tmp_path):
    shop = Workshop(network, quantize, tmp_path, FUSED)
    result = build_with_fallback(shop.make_onnx, shop.compile)
    records = json.loads(json.dumps([attempt.as_dict() for attempt in result.attempts]))
    assert [record["number"] for record in records] == [1, 2, 3]
    assert records[1]["excluded"] == ["/m0/Conv"]
    assert all(record["duration_s"] > 0 for record in records)


def test_the_bound_is_kept(network, quantize, tmp_path):
    shop = Workshop(network, quantize, tmp_path, FUSED)
    with pytest.raises(FallbackError, match=r"2 builds failed, which is the bound") as caught:
        build_with_fallback(shop.make_onnx, shop.compile, max_attempts=2, tensorrt="TensorRT 10.3.0")
    assert len(shop.asked) == len(caught.value.attempts) == 2
    assert "/m2/Conv (Conv)" in str(caught.value)
    assert "TensorRT 10.3.0" in str(caught.value)
    assert "Left in higher precision already: /m0/Conv" in str(caught.value)


def test_a_failure_without_quantizers_stops_at_once(network, quantize, tmp_path):
    shop = Workshop(network, quantize, tmp_path, {"/m0/Conv": "/head/Concat"})
    with pytest.raises(FallbackError, match="no further node with quantizers") as caught:
        build_with_fallback(shop.make_onnx, shop.compile, max_attempts=5)
    assert len(shop.asked) == 1
    assert caught.value.attempts[0].failed_nodes == ("/head/Concat",)


def test_a_log_without_names_stops_at_once(network, quantize, tmp_path):
    def compile_fn(path: Path) -> bytes:
        raise PlanBuildError("no plan", (LogLine("ERROR", "Error Code 2: Internal Error (out of luck)"),))

    shop = Workshop(network, quantize, tmp_path, {})
    with pytest.raises(FallbackError, match="out of luck"):
        build_with_fallback(shop.make_onnx, compile_fn)
    assert len(shop.asked) == 1


def test_a_node_named_again_after_it_was_left_out_stops(network, quantize, tmp_path):
    def compile_fn(path: Path) -> bytes:
        text = "Could not find any implementation for node /m0/Conv."
        raise PlanBuildError("no plan", (LogLine("ERROR", text),))

    shop = Workshop(network, quantize, tmp_path, {})
    with pytest.raises(FallbackError):
        build_with_fallback(shop.make_onnx, compile_fn, max_attempts=9)
    assert shop.asked == [frozenset(), {"/m0/Conv"}]


def test_other_errors_pass_through(network, quantize, tmp_path):
    def compile_fn(path: Path) -> bytes:
        raise TensorRTError("the input is wrong")

    shop = Workshop(network, quantize, tmp_path, {})
    with pytest.raises(TensorRTError, match="the input is wrong"):
        build_with_fallback(shop.make_onnx, compile_fn)


def test_carriers_behind_a_layer_without_own_quantizers(network, quantize):
    graph = GraphNames.from_model(quantize(network, frozenset()))
    assert graph.quantizer_carriers(["/m0/act/Sigmoid", "/m0/act/Mul"]) == ("/m1/Conv",)
    assert graph.quantizer_carriers(["/m0/Conv", "/m0/act/Mul"]) == ("/m0/Conv",)
    assert graph.quantizer_carriers(["/no/such"]) == ()
