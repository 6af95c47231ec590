"""Other packages' own functions, where they are installed (the project's ``bench`` extra)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.plain import encode
from bench.synthetic import INPUT_SIZE, Outputs
from pipeline.letterbox import Geometry

MaskMaker: TypeAlias = "Callable[[], tuple[NDArray[np.float32], list[bytes]]]"
"""From a network's outputs to boxes float32 [n, 4] in image pixels and COCO compressed ``counts``."""


def available(name: str) -> ModuleType | None:
    """A module, or None if it or what it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def ultralytics_masks(outputs: Outputs, confidence: float, iou: float) -> MaskMaker | None:
    """Ultralytics: ``non_max_suppression``, ``scale_boxes``, ``process_mask_native``; None if not installed."""
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


def edgefirst_masks(outputs: Outputs, confidence: float, iou: float) -> MaskMaker | None:
    """EdgeFirst: ``decode_proto`` and ``materialize_masks`` at the image's size; None if not installed."""
    decoding, tensors, images = (available(f"edgefirst.{name}") for name in ("decoder", "tensor", "image"))
    if decoding is None or tensors is None or images is None:
        return None
    decoder = decoding.Decoder.new_from_outputs(
        outputs=[
            decoding.Output.detection(shape=[1, *outputs.detections.shape]).with_normalized(False),
            decoding.Output.protos(dshape=_named_dimensions(decoding.DimName, outputs.wide_prototypes)),
        ],
        score_threshold=confidence,
        iou_threshold=iou,
        input_dims=(INPUT_SIZE, INPUT_SIZE),
    )
    raw = [_tensor(tensors, outputs.detections[None]), _tensor(tensors, outputs.wide_prototypes[None])]
    processor = images.ImageProcessor()
    geometry = outputs.geometry
    region = _content_region(geometry)
    resolution = images.MaskResolution.Scaled(geometry.width, geometry.height)

    def run() -> tuple[NDArray[np.float32], list[bytes]]:
        boxes, scores, classes, prototypes = decoder.decode_proto(raw, 300)
        tiles = processor.materialize_masks(
            boxes, scores, classes, prototypes, content_region=region, resolution=resolution
        )
        placed = geometry.to_image(np.asarray(boxes, np.float32) * INPUT_SIZE)
        return placed, [_paste_and_encode(tile[..., 0], box, geometry) for tile, box in zip(tiles, placed, strict=True)]

    return run


def _named_dimensions(names: Any, prototypes: NDArray[np.float32]) -> list[tuple[Any, int]]:
    channels, height, width = prototypes.shape
    return [(names.Batch, 1), (names.NumProtos, channels), (names.Height, height), (names.Width, width)]


def _content_region(geometry: Geometry) -> tuple[float, float, float, float]:
    return (
        geometry.pad_left / INPUT_SIZE,
        geometry.pad_top / INPUT_SIZE,
        (geometry.pad_left + geometry.resized_width) / INPUT_SIZE,
        (geometry.pad_top + geometry.resized_height) / INPUT_SIZE,
    )


def _tensor(tensors: Any, array: NDArray[np.float32]) -> Any:
    tensor = tensors.Tensor(list(array.shape), dtype="float32")
    tensor.from_numpy(array)
    return tensor


def _paste_and_encode(tile: NDArray[np.uint8], box: NDArray[np.float32], geometry: Geometry) -> bytes:
    whole = np.zeros((geometry.height, geometry.width), np.uint8, order="F")
    if tile.shape == whole.shape:
        whole[:] = tile > 127
    else:
        top = min(max(int(box[1]), 0), geometry.height - tile.shape[0])
        left = min(max(int(box[0]), 0), geometry.width - tile.shape[1])
        whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile > 127
    return encode(whole)
