"""An independent way from photograph to masks: the plain export, whole-mask upsampling, nothing of ``pipeline``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from PIL import Image

INPUT_SIZE = 640


@dataclass(frozen=True)
class Instance:
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


def segment(onnx: Path, photograph: Path, confidence: float = 0.25, iou: float = 0.45) -> list[Instance]:
    """Instances of one photograph, best first; masks at full resolution, computed in float64."""
    image = np.asarray(Image.open(photograph).convert("RGB"))
    height, width = image.shape[:2]
    ratio = min(INPUT_SIZE / height, INPUT_SIZE / width)
    new_width, new_height = round(width * ratio), round(height * ratio)
    left, top = (INPUT_SIZE - new_width) // 2, (INPUT_SIZE - new_height) // 2
    canvas = np.full((INPUT_SIZE, INPUT_SIZE, 3), 114, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(
        image, (new_width, new_height), interpolation=cv2.INTER_AREA
    )
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    blob = canvas.transpose(2, 0, 1)[None].astype(np.float32) / 255
    detections, prototypes = (output[0].astype(np.float64) for output in session.run(None, {"images": blob}))
    instances: list[Instance] = []
    for row in sorted(detections.T, key=lambda row: -row[4]):
        if row[4] < confidence:
            break
        cx, cy, w, h = row[:4]
        box = (
            max((cx - w / 2 - left) / ratio, 0),
            max((cy - h / 2 - top) / ratio, 0),
            min((cx + w / 2 - left) / ratio, width),
            min((cy + h / 2 - top) / ratio, height),
        )
        if any(box_iou(box, other.box) > iou for other in instances):
            continue
        logits = np.tensordot(row[5:], prototypes, 1)
        whole = cv2.resize(logits, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_LINEAR)
        whole = whole[top : top + new_height, left : left + new_width]
        whole = cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR)
        columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
        inside = ((rows >= box[1]) & (rows < box[3]))[:, None] & ((columns >= box[0]) & (columns < box[2]))
        instances.append(Instance(float(row[4]), box, (whole > 0) & inside))
    return instances


def box_iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def authors_boxes(test_file: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """What the model's authors expect: x, y, width, height (cut to whole pixels) per photograph, out of their test."""
    tree = ast.parse(test_file.read_text())
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Tuple)
            and len(node.elts) == 2
            and isinstance(node.elts[0], ast.Constant)
            and isinstance(node.elts[1], ast.List)
        ):
            boxes = []
            for call in node.elts[1].elts:
                if isinstance(call, ast.Call):
                    values = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                    boxes.append((values["x"], values["y"], values["w"], values["h"]))
            found[node.elts[0].value] = boxes
    return found
