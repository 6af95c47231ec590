"""The tensorrt profile's fallback on the reference model, with gates that int8 does not pass."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from rich.console import Console

from base.progress import Steps
from builder import __main__ as command
from builder.build import build
from builder.errors import GateError
from builder.quantizers import nodes_to_exclude, quantized_nodes
from builder.settings import load_settings

pytest.importorskip("modelopt", reason="ModelOpt is missing; make test-tensorrt runs it")
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is missing; make test-tensorrt runs it")

pytestmark = pytest.mark.tensorrt


def settings(tmp_path, int8_gate, **changes):
    entries = {
        "profile": "tensorrt",
        "precisions": ("int8",),
        "repository": tmp_path / "repository",
        "report": tmp_path / "report",
        "gates": {"int8": int8_gate},
        "plan.flavor": "tensorrt-rtx",
        "calibration.scenes": 4,
        "verification.scenes": 4,
        "fallback.sensitivity_images": 1,
        **changes,
    }
    return load_settings(None, entries)


def test_layers_are_restored_step_by_step_until_a_strict_gate_holds(tmp_path, reference):
    strict = {"f1": 0.97, "mask_iou": 0.997}
    (built,) = build(settings(tmp_path, strict, **{"fallback.max_restorations": 30}), Steps(Console(quiet=True)))
    verification = built.manifest.verification
    first, *steps = verification["trades"]
    assert first["failures"]
    assert verification["passed"]
    assert verification["restored"] == steps[-1]["restored"]
    assert steps[-1]["int8_convolutions"] < first["int8_convolutions"]
    restored = set(nodes_to_exclude(verification["restored"], onnx.load(reference.onnx)))
    assert restored
    assert not restored & set(quantized_nodes(onnx.load(built.folder / "model.onnx")))


def test_black_calibration_images_are_refused_with_advice(tmp_path, reference):
    folder = tmp_path / "black"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((640, 640, 3), index, np.uint8))
    changes = {
        "calibration.images": (folder,),
        "verification.images": reference.photographs[:3],
        "fallback.max_restorations": 1,
    }
    with pytest.raises(GateError, match="int8 does not pass its gate") as caught:
        build(settings(tmp_path, {"f1": 1, "mask_iou": 1}, **changes), Steps(Console(quiet=True)))
    assert "calibrate on more images of what the model will see: --images (3 were used" in str(caught.value)
    assert (tmp_path / "report" / "yolov8n-seg-int8.html").is_file()


def test_unknown_layers_to_exclude_are_refused(capsys):
    options = ["--profile", "tensorrt", "--calibration-scenes", "4", "--verification-scenes", "4"]
    assert command.main(["sensitivity", *options, "--exclude", "model.22.prot"]) == 1
    assert "close to it: model.22.proto" in " ".join(capsys.readouterr().err.split())
