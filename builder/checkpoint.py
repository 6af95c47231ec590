"""A checkpoint given in place of an export: ultralytics exports it, in the user's own environment.

A checkpoint is a pickle, and reading one runs whatever is in it. So nothing here reads it: the command ``yolo`` does,
as it does whenever its owner uses the file.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from builder.errors import ExportError

CHECKPOINTS: Final = (".pt", ".pth", ".ckpt")
_OTHERS: Final = {
    ".engine": "a TensorRT engine, which runs on one kind of GPU only; the builder makes plans itself, from ONNX",
    ".plan": "a TensorRT plan, which runs on one kind of GPU only; the builder makes plans itself, from ONNX",
    ".safetensors": "weights alone, as Hugging Face stores them, without the network",
    ".bin": "weights alone, as Hugging Face stores them, without the network",
    ".torchscript": "a TorchScript export",
    ".tflite": "a LiteRT export",
    ".mlpackage": "a Core ML export",
    ".pb": "a TensorFlow export",
    ".xml": "an OpenVINO export",
}
_RFDETR: Final = ("rf-detr", "rfdetr", "checkpoint_best")
_SHOWN_LINES: Final = 5


def export_command(path: Path, input_size: tuple[int, int] | None) -> list[str]:
    """What exports a checkpoint of ultralytics."""
    size = [] if input_size is None else [f"imgsz={','.join(map(str, dict.fromkeys(input_size)))}"]
    return ["yolo", "export", f"model={path}", "format=onnx", *size]


def onnx_of(path: Path, input_size: tuple[int, int] | None, note: Callable[[str], None]) -> Path:
    """The ONNX file to read: the one given, or what ultralytics makes of the checkpoint given.

    Args:
        path: as given.
        input_size: height and width, for the export.
        note: takes what is being done.

    Raises:
        ExportError: the file is something else, or is not exported; says what it is and the command that helps.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHERS:
        raise ExportError(
            f"{path} is {_OTHERS[suffix]}. Export the model to ONNX (`yolo export model=best.pt format=onnx`)"
        )
    if suffix not in CHECKPOINTS or not path.is_file():
        return path
    if path.name.lower().startswith(_RFDETR):
        raise ExportError(
            f"{path} looks like a checkpoint of RF-DETR, and the builder takes ONNX. Export it where it was trained, "
            f"with rfdetr and the class of the model: `RFDETRSegNano(pretrain_weights={str(path)!r})"
            ".export(dynamic_batch=True)`. Then give the ONNX file with --onnx"
        )
    target = path.with_suffix(".onnx")
    if target.exists():
        raise ExportError(f"{path} is a checkpoint; {target.name} lies beside it: give that one, --onnx {target}")
    command = export_command(path, input_size)
    shown = shlex.join(command)
    tool = shutil.which(command[0])
    if tool is None:
        raise ExportError(
            f"{path} is a checkpoint, and the builder takes ONNX. Export it where it was trained, with `{shown}` "
            "(`pip install ultralytics` brings the command; with it on PATH the builder runs it itself). Checkpoints "
            "of YOLOv5 and YOLOv7 are exported by `python export.py --include onnx` of their repositories. Then "
            f"give --onnx {target}"
        )
    note(f"{path.name} is a checkpoint; exporting it with `{shown}`")
    done = subprocess.run(
        [tool, *command[1:]], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode or not target.is_file():
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_SHOWN_LINES:])
        raise ExportError(f"`{shown}` ended with status {done.returncode} and made no {target}. It said:\n{said}")
    return target
