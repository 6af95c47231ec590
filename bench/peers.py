"""Ultralytics' own functions, where it is installed (by hand: docs/performance.md)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.plain import encode
from bench.synthetic import INPUT_SIZE, Outputs

MaskMaker: TypeAlias = "Callable[[], tuple[NDArray[np.float32], list[bytes]]]"
"""From a network's outputs to boxes float32 [n, 4] in image pixels and COCO compressed ``counts``."""


def available(name: str) -> ModuleType | None:
    """A module, or None if it or what it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def ultralytics_masks(outputs: Outputs, confidence: float, iou: float) -> MaskMaker | None:
    """``non_max_suppression``, ``scale_boxes`` and ``process_mask_native``; None if not installed."""
    torch, nms, ops = (available(name) for name in ("torch", "ultralytics.utils.nms", "ultralytics.utils.ops"))
    if torch is None or nms is None or ops is None:
        return None
    torch.set_num_threads(1)
    detections = torch.from_numpy(outputs.detections[None])
    prototypes = torch.from_numpy(outputs.wide_prototypes)
    shape = (outputs.geometry.height, outputs.geometry.width)

    def run() -> tuple[NDArray[np.float32], list[bytes]]:
        (rows,) = nms.non_max_suppression(detections.clone(), confidence, iou, nc=1, max_det=300)
        boxes = ops.scale_boxes((INPUT_SIZE, INPUT_SIZE), rows[:, :4], shape)
        masks = ops.process_mask_native(prototypes, rows[:, 6:], boxes, shape).numpy()
        return boxes.numpy(), [encode(mask) for mask in masks]

    return run
