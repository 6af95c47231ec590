"""The cpu profile's ranking and fallback on the reference model: a real network, with gates that int8 does not pass."""

from __future__ import annotations

import html
import json
import re

import cv2
import numpy as np
import onnx
import pytest
from rich.console import Console

from base.progress import Steps
from builder import __main__ as command
from builder.build import build
from builder.datasets import resolve_datasets
from builder.errors import GateError
from builder.quantizers import count_convolutions, nodes_to_exclude, quantized_nodes
from builder.settings import Verification, load_settings
from builder.verification import compare, segment_set
from repository.network import onnx_network


def settings(tmp_path, int8_gate, **changes):
    entries = {
        "precisions": ("int8",),
        "repository": tmp_path / "repository",
        "report": tmp_path / "report",
        "gates": {"int8": int8_gate},
        **changes,
    }
    return load_settings(None, entries)


def test_the_groups_of_the_reference_model_are_ranked(tmp_path, capsys):
    options = ["--profile", "cpu", "--calibration-scenes", "2", "--verification-scenes", "1"]
    assert command.main(["sensitivity", *options, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    facts = json.loads((tmp_path / "sensitivity.json").read_text())
    groups = {entry["group"]: entry for entry in facts["groups"]}
    assert {"model.0", "model.1", "model.21", "model.22.cv2", "model.22.proto"} <= set(groups)
    assert "model.22.proto" in shown
    assert sum(entry["convolutions"] for entry in groups.values()) == 66
    assert all(0 <= entry["cost"] < 0.5 for entry in groups.values())
    nothing, *_, everything = facts["trade"]
    assert (nothing["int8_convolutions"], everything["int8_convolutions"]) == (66, 0)
    assert everything["f1"] == 1
    assert everything["mask_iou"] == pytest.approx(1, abs=1e-3)
    assert nothing["size_bytes"] < everything["size_bytes"] / 3
    picture = cv2.imread(str(tmp_path / "sensitivity.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 10


def test_layers_are_restored_step_by_step_until_a_strict_gate_holds(tmp_path, reference):
    strict = {"f1": 0.97, "mask_iou": 0.995}
    changes = {
        "precisions": ("fp32", "int8"),
        "calibration.scenes": 4,
        "verification.scenes": 4,
        "fallback.sensitivity_images": 1,
        "fallback.max_restorations": 30,
    }
    wanted = settings(tmp_path, strict, **changes)
    fp32, built = build(wanted, Steps(Console(quiet=True)))
    verification = built.manifest.verification
    first, *steps = verification["trades"]
    assert first["failures"]
    assert first["int8_convolutions"] == 66
    assert verification["passed"]
    assert verification["restored"] == steps[-1]["restored"]
    written = onnx.load(built.folder / "model.onnx")
    assert count_convolutions(written)[0] == steps[-1]["int8_convolutions"]
    assert 0 < steps[-1]["int8_convolutions"] < 66
    restored = set(nodes_to_exclude(verification["restored"], onnx.load(reference.onnx)))
    assert restored
    assert not restored & set(quantized_nodes(written))
    # What was written is measured again, against the fp32 network that is written beside it.
    paths = resolve_datasets(wanted, reference, Steps(Console(quiet=True))).verification.paths
    one, other = (
        segment_set(onnx_network(entry.folder / "model.onnx"), paths, (640, 640), Verification(), lambda: None)
        for entry in (fp32, built)
    )
    again = compare(one, other, 0.25)
    assert again.f1 == pytest.approx(verification["metrics"]["f1"], abs=1e-6)
    assert again.mask_iou == pytest.approx(verification["metrics"]["mask_iou"], abs=1e-3)
    assert again.mask_iou > first["mask_iou"]


def test_black_calibration_images_and_a_gate_out_of_reach_are_refused_with_the_best_step(tmp_path, reference):
    folder = tmp_path / "black"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((640, 640, 3), index, np.uint8))
    changes = {
        "calibration.images": (folder,),
        "verification.images": reference.photographs[:3],
        "fallback.max_restorations": 1,
        "fallback.sensitivity_images": 1,
    }
    with pytest.raises(GateError, match="int8 does not pass its gate") as caught:
        build(settings(tmp_path, {"f1": 1, "mask_iou": 1}, **changes), Steps(Console(quiet=True)))
    message = str(caught.value)
    page = html.unescape((tmp_path / "report" / "yolov8n-seg-int8.html").read_text())
    # Every value of a photograph is beyond the range that the first layer is given; without it, the masks are close.
    assert "3 of 3 calibration images show nothing but one color" in page
    assert "after restoring model.0:" in message
    assert float(re.search(r"mask IoU ([\d.]+) < 1", message).group(1)) > 0.9
    assert "calibrate on more images of what the model will see: --images (3 were used" in message
    assert "TensorRT" not in message
    (line,) = [line for line in message.splitlines() if "--exclude" in line]
    groups = line.split("--exclude ")[1].split()
    assert groups[0] == "model.0"
    assert nodes_to_exclude(groups, onnx.load(reference.onnx))
    for words in ("comes closest", "no version written", "640 x 640", "Layers taken out of int8", *groups):
        assert words in page
    assert not list((tmp_path / "repository" / "network_int8").glob("[0-9]*"))
