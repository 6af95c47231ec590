"""Exports every case and has ultralytics predict on it: ``python -m tests.real_exports.generate PICTURES OUT``.

Runs in the exporter's environment (``requirements/exports.txt``), which has nothing of the project's. Per case it
writes ``NAME.onnx`` and ``NAME.npz``, or ``NAME.error.txt`` if ultralytics itself could not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

# Before ultralytics and ONNX Runtime are imported: no download, no telemetry, no settings in the home folder.
os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "ORT_DISABLE_TELEMETRY": "1"}

import cv2
import numpy as np
import torch
from torch.onnx import symbolic_helper
from torch.onnx.symbolic_helper import parse_args

from tests.real_exports.cases import CASES, CONFIDENCE, IOU, MAX_DETECTIONS, Case

library = torch.library.Library("torchvision", "DEF")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder with one folder of PNG files per input size, HEIGHTxWIDTH")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="names of cases that contain this")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(options.out.absolute())
    _register_nms()
    cases = [case for case in CASES if not options.only or options.only in case.name]
    for model_of in dict.fromkeys((case.family, case.classes, case.input_size) for case in cases):
        from tests.real_exports.models import tiny_model
        from tests.real_exports.yolov5 import tiny_yolov5

        family, classes, input_size = model_of
        paths = _paths(options.pictures, input_size)
        if family == "rf-detr":
            from tests.real_exports.rf_detr import tiny_rf_detr

            model = tiny_rf_detr(classes, _network_input(paths), CONFIDENCE)
        elif family in ("v5", "v7"):
            model = tiny_yolov5(classes, _network_input(paths), CONFIDENCE, with_maps=family == "v7")
        else:
            model = tiny_model(family, classes, _network_input(paths), CONFIDENCE)
        for case in cases:
            if (case.family, case.classes, case.input_size) == model_of:
                _one(case, model, paths, options.out)
    return 0


def _paths(pictures: Path, size: tuple[int, int]) -> list[Path]:
    return sorted((pictures / f"{size[0]}x{size[1]}").glob("*.png"))


def _network_input(paths: list[Path]) -> torch.Tensor:
    images = np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def _one(case: Case, model: Any, paths: list[Path], out: Path) -> None:
    try:
        if case.options.get("half"):
            # What the builder makes of it computes in single precision: so does the reference, with the same weights.
            model = _rounded(model)
            file = _export(dataclasses.replace(case, options={**case.options, "half": False}), model, out)
            found = _predict(case, file, paths)
            if case.options == {"half": True}:  # a checkpoint holds halves too
                kept = {
                    "model": copy.deepcopy(model).half(),
                    "train_args": model.args,
                    "epoch": -1,
                    "date": "",
                    "version": "",
                }
                torch.save(kept, out / f"{case.name}.pt")
        file = _export(case, model, out)
        np.savez(out / f"{case.name}.npz", **(found if case.options.get("half") else _predict(case, file, paths)))
        print(f"{case.name}: {file.stat().st_size / 1e6:.2f} MB", flush=True)
    except Exception as error:  # the exporter raises what torch and onnx raise; the test judges it
        (out / f"{case.name}.error.txt").write_text("".join(traceback.format_exception(error)))
        print(f"{case.name}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)


def _rounded(model: Any) -> Any:
    """A copy with all weights as half precision holds them, so that an export in half precision keeps them."""
    model = copy.deepcopy(model).fuse(verbose=False)
    for module in model.modules():
        for weights in module.parameters(recurse=False):
            weights.data = weights.data.half().float()
        if isinstance(getattr(module, "scale", None), float):  # of attention
            module.scale = float(torch.tensor(module.scale).half())
    return model


def _export(case: Case, model: Any, out: Path) -> Path:
    if case.family == "rf-detr":
        from tests.real_exports import rf_detr

        return rf_detr.export(model, out / f"{case.name}.onnx", case.options)
    if case.family in ("v5", "v7"):
        from tests.real_exports import yolov5

        return yolov5.export(model, out / f"{case.name}.onnx", case.input_size, case.options)
    from ultralytics.engine.exporter import Exporter

    model.pt_path = str(out / f"{case.name}.pt")
    with contextlib.redirect_stdout(sys.stderr), torchvision_nms():
        return Path(
            Exporter(overrides={"format": "onnx", "imgsz": list(case.input_size), "batch": 1, **case.options})(
                model=model
            )
        )


@contextlib.contextmanager
def torchvision_nms() -> Iterator[None]:
    """What ultralytics takes of torchvision for ``nms=True``: torchvision fails beside a torch of another build."""
    ops = ModuleType("torchvision.ops")
    ops.nms = torch.ops.torchvision.nms  # type: ignore[attr-defined]
    stand_ins = {"torchvision": ModuleType("torchvision"), "torchvision.ops": ops}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _register_nms() -> None:
    """The operator, and its ONNX form as torchvision writes it."""
    from ultralytics.utils.nms import TorchNMS

    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", TorchNMS.nms, "CPU")

    @parse_args("v", "v", "f")
    def symbolic(graph: Any, boxes: Any, scores: Any, iou: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return graph.op("Constant", value_t=torch.tensor([value], dtype=dtype))

        boxes = symbolic_helper._unsqueeze_helper(graph, boxes, [0])
        scores = symbolic_helper._unsqueeze_helper(graph, scores, [0, 1])
        most, least = constant(sys.maxsize, torch.int64), constant(iou, torch.float32)
        kept = graph.op("NonMaxSuppression", boxes, scores, most, least)
        return symbolic_helper._squeeze_helper(graph, graph.op("Gather", kept, constant(2, torch.int64), axis_i=1), [1])

    torch.onnx.register_custom_op_symbolic("torchvision::nms", symbolic, 11)


def _predict(case: Case, file: Path, paths: list[Path]) -> dict[str, Any]:
    """What ultralytics' own ``predict(retina_masks=True)`` finds in every picture; of others, what their steps do."""
    if case.family == "rf-detr":
        return _predict_rf_detr(case, file, paths)
    if case.family in ("v5", "v7"):
        return _predict_yolov5(case, file, paths)
    from ultralytics import YOLO
    from ultralytics.models.yolo.segment import SegmentationPredictor
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.utils import nms, ops

    # On a CPU it does nothing but import torchvision, whose suppression then replaces ultralytics' own; and torchvision
    # fails beside a torch of another build.
    AutoBackend.warmup = lambda *_, **__: None
    # Suppression gives up after two seconds and leaves the rest of a batch empty; on a busy machine that is soon.
    nms.time = SimpleNamespace(time=float)
    found: dict[str, Any] = {}
    masks_of = ops.process_mask_native

    class Recorder(SegmentationPredictor):
        """Also keeps what the result no longer says: instances of empty masks, and the logits of the masks."""

        def construct_result(self, pred: Any, img: Any, orig_img: Any, img_path: Any, proto: Any) -> Any:
            masks = [torch.zeros(0, *orig_img.shape[:2], dtype=torch.uint8)]
            with mock.patch.object(
                ops, "process_mask_native", lambda *args: masks.append(masks_of(*args)) or masks[-1]
            ):
                result = super().construct_result(pred, img, orig_img, img_path, proto)
            exact = _exact_masks(pred, proto, orig_img.shape[:2])
            found.update(_arrays(Path(img_path).name, pred, masks[-1], exact, len(result)))
            return result

    height, width = case.input_size
    YOLO(str(file), task="segment").predict(
        [str(path) for path in paths],
        predictor=Recorder,
        imgsz=[height, width],
        batch=case.options.get("batch", 1),
        conf=CONFIDENCE,
        iou=IOU,
        max_det=MAX_DETECTIONS,
        retina_masks=True,
        save=False,
        verbose=False,
    )
    return found


def _predict_yolov5(case: Case, file: Path, paths: list[Path]) -> dict[str, Any]:
    from ultralytics.utils import nms, ops

    from tests.real_exports import yolov5

    nms.time = SimpleNamespace(time=float)
    thresholds = (CONFIDENCE, IOU, MAX_DETECTIONS)
    batch = case.options.get("batch", 1)
    found: dict[str, Any] = {}
    predicted = yolov5.predict(file, _network_input(paths), case.classes, *thresholds, batch)
    for path, (rows, planes) in zip(paths, predicted, strict=True):
        masks = torch.zeros(0, *case.input_size, dtype=torch.uint8)
        rows[:, :4] = ops.clip_boxes(rows[:, :4], case.input_size)
        if len(rows):
            masks = ops.process_mask_native(planes, rows[:, 6:], rows[:, :4], case.input_size)
        found |= _arrays(
            path.name, rows, masks, _exact_masks(rows, planes, case.input_size), int(masks.amax((1, 2)).sum())
        )
    return found


def _predict_rf_detr(case: Case, file: Path, paths: list[Path]) -> dict[str, Any]:
    from tests.real_exports import rf_detr

    found: dict[str, Any] = {}
    predicted = rf_detr.predict(
        file, _network_input(paths), CONFIDENCE, MAX_DETECTIONS, case.options.get("batch_size", 1)
    )
    for path, (rows, masks) in zip(paths, predicted, strict=True):
        # Its masks are the logits, sampled bilinearly at the pixels' centers.
        found |= _arrays(path.name, rows, masks, masks.numpy(), int(masks.any(2).any(1).sum()))
    return found


def _arrays(name: str, rows: torch.Tensor, masks: torch.Tensor, exact: Any, results: int) -> dict[str, Any]:
    """One picture's instances, as the comparison reads them."""
    arrays = {
        "boxes": rows[:, :4].numpy(),
        "scores": rows[:, 4].numpy(),
        "class_ids": rows[:, 5].numpy().astype(np.int32),
        "masks": np.packbits(masks.numpy(), axis=-1),
        "exact_masks": np.packbits(exact, axis=-1),
        "results": np.array(results),
    }
    return {f"{name}/{key}": array for key, array in arrays.items()}


def _exact_masks(pred: torch.Tensor, proto: torch.Tensor, shape: tuple[int, int]) -> Any:
    """Bilinear samples of the logits at the pixels' centers, cropped to pixels whose center lies in the box.

    In float64; the picture is the network's input, so one step of interpolation is all. Returns bool [n, H, W].
    """
    if not len(pred):
        return np.zeros((0, *shape), bool)
    logits = torch.einsum("nc,chw->nhw", pred[:, 6:].double(), proto.double())
    logits = torch.nn.functional.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in shape)
    x1, y1, x2, y2 = pred[:, :4].double().T[:, :, None]
    inside_rows, inside_columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    return ((logits > 0) & inside_rows[:, :, None] & inside_columns[:, None]).numpy()


if __name__ == "__main__":
    sys.exit(main())
