"""Which layers int8 hurts, and what restoring the costliest ones gains."""

import copy
import json
from collections import Counter

import cv2
import numpy as np
import pytest
from onnx import numpy_helper
from rich.console import Console

from base.progress import Steps
from builder import __main__ as command
from builder.build import open_inputs
from builder.errors import BuilderError
from builder.quantizers import count_convolutions, quantized_nodes, remove_quantizers
from builder.sensitivity import GroupCost, Subject, groups_of, int8_size_bytes, rank_groups, trade_off
from builder.settings import Verification, load_settings
from builder.verification import Agreement, segment_set
from repository.network import onnx_network

SIZE = (64, 64)


def make_subject(networks, quantized=None):
    network = onnx_network(networks.original.SerializeToString())
    reference = segment_set(network, networks.paths, SIZE, Verification(), lambda: None)
    return Subject(quantized or networks.quantized, networks.original, networks.paths, reference, SIZE, Verification())


@pytest.fixture
def subject(networks):
    return make_subject(networks)


def ruined(quantized, node):
    """The network with the int8 weights of one node in the wrong order of channels."""
    model = copy.deepcopy(quantized)
    producers = {output: entry for entry in model.graph.node for output in entry.output}
    weights = next(entry for entry in model.graph.node if entry.name == node).input[1]
    name = producers[weights].input[0]
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=0), name))
    return model


def test_the_groups_hold_every_quantized_node_once(networks):
    nodes = [name for names in groups_of(networks.quantized).values() for name in names]
    assert sorted(nodes) == sorted(quantized_nodes(networks.quantized))
    assert max(Counter(nodes).values()) == 1
    assert {"stem8", "head8", "output1"} <= set(groups_of(networks.quantized))
    assert groups_of(networks.original) == {}


def test_every_group_is_ranked_by_what_it_costs_alone(networks, subject):
    seen = []
    ranking = rank_groups(subject, lambda: seen.append(1))
    groups = groups_of(networks.quantized)
    assert len(seen) == len(ranking) == len(groups)
    assert {cost.group: list(cost.nodes) for cost in ranking} == groups
    assert [cost.cost for cost in ranking] == sorted((cost.cost for cost in ranking), reverse=True)
    assert sum(cost.convolutions for cost in ranking) == count_convolutions(networks.quantized)[0]
    assert all(cost.agreement.reference_detections > 0 for cost in ranking)


@pytest.mark.parametrize("node", ["head8", "output1"])
def test_a_ruined_layer_is_the_costliest(networks, node):
    ranking = rank_groups(make_subject(networks, ruined(networks.quantized, node)), lambda: None)
    assert ranking[0].group == node
    assert ranking[0].cost > 2 * ranking[1].cost


def test_a_ruined_layer_that_is_restored_costs_nothing(networks):
    subject = make_subject(networks, ruined(networks.quantized, "head8"))
    ranking = rank_groups(subject, lambda: None)
    nothing, one = trade_off(subject, ranking, [0, 1], lambda: None)
    assert one.restored == ("head8",)
    whole = make_subject(networks).compare(remove_quantizers(networks.quantized, networks.original, {"head8"}))
    assert one.agreement == whole
    assert one.agreement.f1 > nothing.agreement.f1


def test_restoring_all_gives_fp32(networks, subject):
    ranking = rank_groups(subject, lambda: None)
    seen = []
    trades = trade_off(subject, ranking, range(len(ranking) + 1), lambda: seen.append(1))
    assert len(seen) == len(ranking) + 1
    assert trades[0].restored == ()
    assert trades[0].int8_convolutions == count_convolutions(networks.quantized)[0]
    assert [trade.int8_convolutions for trade in trades] == sorted(
        (trade.int8_convolutions for trade in trades), reverse=True
    )
    assert trades[-1].restored == tuple(cost.group for cost in ranking)
    assert trades[-1].int8_convolutions == 0
    assert trades[-1].agreement.f1 == 1
    assert trades[-1].agreement.mask_iou == pytest.approx(1, abs=2e-3)
    assert trades[-1].size_bytes == int8_size_bytes(networks.original)


def test_weights_count_one_byte_each_in_int8(networks):
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in networks.original.graph.initializer}
    assert int8_size_bytes(networks.original) == sum(value.nbytes for value in weights.values())
    channels, *rest = weights["head8.weight"].shape
    with_it = int8_size_bytes(networks.quantized)
    without = int8_size_bytes(remove_quantizers(networks.quantized, networks.original, {"head8"}))
    # A scale and a zero point per channel, and one of each for the layer's input, are no longer needed.
    assert without - with_it == 3 * channels * int(np.prod(rest)) - 5 * (channels + 1)


def test_costs_in_the_manifest():
    cost = GroupCost("model.0", ("a", "b"), 1, Agreement(4, 10, 10, 9, 0.9, 0.5, 0.01))
    assert cost.cost == pytest.approx(1 - 0.9 * 0.5)
    assert cost.as_dict() == {
        "group": "model.0",
        "nodes": 2,
        "convolutions": 1,
        "cost": 0.55,
        "f1": 0.9,
        "mask_iou": 0.5,
    }


def test_the_command_writes_table_and_plot(tmp_path, networks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [str(path) for path in networks.paths]
    options = ["--profile", "cpu", "--onnx", str(networks.export), "--repository", str(tmp_path / "repository")]
    assert command.main(["sensitivity", *options, "--images", *images, "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert facts["images"] == 1  # of the four, the one that is held back
    assert {entry["group"] for entry in facts["groups"]} >= {"stem8", "head8"}
    assert facts["trade"][-1]["int8_convolutions"] == 0
    picture = cv2.imread(str(tmp_path / "out" / "sensitivity.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 10
    assert not (tmp_path / "repository").exists()


def test_a_build_without_quantizers_cannot_be_examined(networks, monkeypatch):
    entries = {"onnx": networks.export, "calibration.images": networks.paths, "repository": "nowhere"}
    inputs = open_inputs(load_settings(None, entries), Steps(Console(quiet=True)))
    make = inputs.profile.make
    monkeypatch.setattr(inputs.profile, "make", lambda _, exclude: make("fp16", exclude))
    with pytest.raises(BuilderError, match="without quantizers"):
        inputs.int8_subject()
