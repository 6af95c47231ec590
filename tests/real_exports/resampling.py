"""What ultralytics and rfdetr make of whole pictures: ``python -m tests.real_exports.resampling PICTURES OUT``.

Runs in the exporter's environment. For each picture it writes ``NAME.npz``: the network's input by ultralytics'
``LetterBox``, in two sizes and stretched, and by rfdetr's steps; with ``--model``, also what ultralytics' ``predict``
finds in the picture.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from tests.real_exports import generate  # keeps ultralytics from the network
from tests.real_exports.cases import CONFIDENCE, IOU, MAX_DETECTIONS, NANO, SQUARE, WIDE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="ONNX file")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    os.environ["YOLO_CONFIG_DIR"] = str(options.out.absolute())
    generate._register_nms()
    from tests.real_exports import rf_detr  # noqa: F401 - torchvision does not load without its and these operators

    paths = sorted(options.pictures.iterdir())
    predicted = _predicted(options.model, paths) if options.model else {}
    for path in paths:
        np.savez(options.out / f"{path.name}.npz", **(predicted.get(path.name) or _inputs(path)))
    return 0


def _inputs(path: Path) -> dict[str, Any]:
    """uint8 [H, W, 3] RGB of ultralytics; float32 [3, H, W] in [0, 1] of rfdetr, before it is normalized."""
    from torchvision.transforms import functional
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    image = imread(path)  # as ultralytics' loader does
    tensor = functional.to_tensor(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    return {
        "square": LetterBox(SQUARE)(image=image)[..., ::-1],
        "wide": LetterBox(WIDE)(image=image)[..., ::-1],
        "stretched": LetterBox(NANO, scale_fill=True)(image=image)[..., ::-1],
        "rfdetr": functional.resize(tensor, list(NANO), antialias=False).numpy(),
    }


def _predicted(model: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """By picture: the input of the network, and rows of x1, y1, x2, y2 in its pixels, score, class."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.segment import SegmentationPredictor
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.utils import nms

    AutoBackend.warmup = lambda *_, **__: None  # see generate
    nms.time = SimpleNamespace(time=float)
    found: dict[str, dict[str, Any]] = {}

    class Recorder(SegmentationPredictor):
        def pre_transform(self, im: Any) -> Any:
            self.letterboxed = super().pre_transform(im)
            return self.letterboxed

        def construct_result(self, pred: Any, img: Any, orig_img: Any, img_path: Any, proto: Any) -> Any:
            rows, (image,) = pred[:, :6].clone().numpy(), self.letterboxed
            result = super().construct_result(pred, img, orig_img, img_path, proto)
            found[Path(img_path).name] = {"square": cv2.cvtColor(image, cv2.COLOR_BGR2RGB), "rows": rows}
            return result

    owner = YOLO(str(model), task="segment")
    for path in paths:  # one by one: of a list, it makes one batch
        owner.predict(
            str(path),
            predictor=Recorder,
            imgsz=list(SQUARE),
            conf=CONFIDENCE,
            iou=IOU,
            max_det=MAX_DETECTIONS,
            save=False,
            verbose=False,
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
