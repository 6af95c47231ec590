"""A checkpoint in place of an export is exported by its owner's tool, or the command is said."""

from __future__ import annotations

import os

import pytest

from builder.__main__ import main
from builder.checkpoint import onnx_of
from builder.errors import ExportError
from tests.exports import segmentation_export


def on_path(folder, monkeypatch, script):
    tool = folder / "bin" / "yolo"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def test_an_export_is_taken_as_it_is(tmp_path):
    assert onnx_of(tmp_path / "best.onnx", None, print) == tmp_path / "best.onnx"


def test_without_ultralytics_the_command_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "best.pt"
    path.write_bytes(b"not even a pickle: nothing reads it")
    with pytest.raises(ExportError, match=rf"yolo export model={path} format=onnx imgsz=384,640`"):
        onnx_of(path, (384, 640), print)
    assert main(["build", "--onnx", str(path), "--repository", str(tmp_path / "repository")]) == 1
    assert f"yolo export model={path} format=onnx`" in capsys.readouterr().err.replace("\n", " ")


def test_the_tool_exports_it(tmp_path, monkeypatch, capsys):
    made = segmentation_export(tmp_path / "made.onnx")
    path = tmp_path / "my best.pt"
    path.write_bytes(b"a checkpoint")
    on_path(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; cp {made} "{tmp_path}/my best.onnx"')
    assert main(["inspect", str(path), "--input-size", "64"]) == 0
    assert (tmp_path / "asked").read_text().split()[:1] == ["export"]
    assert "imgsz=64" in (tmp_path / "asked").read_text()
    assert "can be built" in capsys.readouterr().out
    with pytest.raises(ExportError, match=r"my best\.onnx lies beside it"):
        onnx_of(path, None, print)


def test_a_tool_that_fails_is_quoted(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    path.write_bytes(b"a checkpoint")
    on_path(tmp_path, monkeypatch, "echo it was trained by something else; exit 3")
    with pytest.raises(ExportError, match=r"status 3 .*\n?.*it was trained by something else"):
        onnx_of(path, None, print)


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("model.safetensors", "Hugging Face"),
        ("pytorch_model.bin", "Hugging Face"),
        ("best.engine", "TensorRT engine"),
        ("rf-detr-seg-nano.pt", r"RF-DETR.*export\(dynamic_batch=True\)"),
    ],
)
def test_other_files_are_named(tmp_path, name, say):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ExportError, match=say):
        onnx_of(tmp_path / name, None, print)
