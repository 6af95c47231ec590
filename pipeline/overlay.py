"""Draws detections onto their image."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.fonts import text_mask
from pipeline.result import Detection, Segmentation

Color: TypeAlias = "tuple[int, int, int]"

_GOLDEN_RATIO: Final = 0.618033988749895  # steps around the hues keep neighbors apart
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(
    image: NDArray[np.uint8],
    segmentation: Segmentation,
    *,
    class_names: Mapping[int, str] | None = None,
    color_by: Literal["instance", "class"] = "instance",
    opacity: float = 0.45,
) -> NDArray[np.uint8]:
    """Draw masks, contours, boxes and labels.

    Args:
        image: uint8 [height, width, 3] RGB, upright, of the result's size.
        segmentation: the result for this image.
        class_names: names for labels in place of the result's; an index without one is shown as a number.
        color_by: ``instance`` tells neighbors apart; ``class`` keeps colors steady from frame to frame. Tracked objects
            keep the color of their track.
        opacity: of the mask's color, in [0, 1].

    Returns:
        A new uint8 [height, width, 3] RGB. Better detections lie on top.

    Raises:
        ValueError: the image is of another size, or a mask cannot be decoded.

    Example:
        >>> segmentation = Segmentation(
        ...     np.array([[10, 10, 50, 30]], np.float32), np.ones(1), np.zeros(1, int), (b"",), "none", (40, 60)
        ... )
        >>> draw_overlay(np.zeros((40, 60, 3), np.uint8), segmentation, class_names={0: "card"}).shape
        (40, 60, 3)
    """
    if image.shape[:2] != segmentation.image_size:
        height, width = segmentation.image_size
        raise ValueError(f"the image is {image.shape[0]}x{image.shape[1]} pixels; the result is for {height}x{width}")
    canvas = np.ascontiguousarray(image).copy()
    thickness = max(1, round(sum(image.shape[:2]) / 600))
    shown = list(enumerate(segmentation))[::-1]
    for index, detection in shown:
        color = _color(index, detection, color_by)
        if detection.mask_format != "none":
            _draw_mask(canvas, detection, color, opacity, thickness)
        left, top, right, bottom = (round(float(value)) for value in detection.box)
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
    # After all masks, or a neighbor would paint over them.
    for index, detection in shown:
        color = _color(index, detection, color_by)
        name = (class_names or {}).get(detection.class_id, detection.class_name or str(detection.class_id))
        track = "" if detection.track_id is None else f" #{detection.track_id}"
        _draw_label(canvas, f"{name}{track} {detection.score:.2f}", detection, color, thickness)
    return canvas


def _color(index: int, detection: Detection, color_by: str) -> Color:
    if detection.track_id is not None:
        return palette(detection.track_id)
    return palette(index if color_by == "instance" else detection.class_id)


def palette(index: int) -> Color:
    """A bright color, RGB in [0, 255], different for neighboring indices.

    Example:
        >>> palette(0), palette(1)
        ((51, 157, 255), (217, 255, 51))
    """
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN_RATIO) % 1.0, 0.8, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_mask(canvas: NDArray[np.uint8], detection: Detection, color: Color, opacity: float, thickness: int) -> None:
    height, width = canvas.shape[:2]
    # A mask lies inside its box: only that part of the image is touched.
    left, top = (max(0, int(np.floor(value)) - 1) for value in detection.box[:2])
    right, bottom = (
        min(limit, int(np.ceil(value)) + 1) for value, limit in zip(detection.box[2:], (width, height), strict=True)
    )
    inside = detection.mask()[top:bottom, left:right]
    if not inside.any():
        return
    region = canvas[top:bottom, left:right]
    tint = np.array(color, np.float32) * opacity
    region[inside] = (region[inside] * (1 - opacity) + tint).round().astype(np.uint8)
    contours, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top)
    )
    cv2.drawContours(canvas, contours, -1, color, max(1, thickness // 2), cv2.LINE_AA)


def _draw_label(canvas: NDArray[np.uint8], text: str, detection: Detection, color: Color, thickness: int) -> None:
    height, width = canvas.shape[:2]
    scale = max(0.4, thickness * 0.28)
    stroke = max(1, round(thickness * 0.6))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    drawn = None
    if not text.isascii():
        drawn = text_mask(text, round((text_height + baseline) * 1.1))
        if drawn is None:  # no font here has these characters
            text = f"{detection.class_id} {detection.score:.2f}"
            (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
        else:
            text_height, text_width, baseline = *drawn.shape, 0
    pad = max(2, thickness)
    box_width, box_height = text_width + 2 * pad, text_height + baseline + 2 * pad
    left = max(0, min(round(float(detection.box[0])), width - box_width))
    top = round(float(detection.box[1])) - box_height
    if top < 0:  # no room above the box: inside it
        top = max(0, min(round(float(detection.box[1])), height - box_height))
    cv2.rectangle(canvas, (left, top), (left + box_width, top + box_height), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]  # ITU-R BT.601
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    if drawn is None:
        cv2.putText(canvas, text, (left + pad, top + pad + text_height), _FONT, scale, ink, stroke, cv2.LINE_AA)
        return
    region = canvas[top + pad : top + pad + text_height, left + pad : left + pad + text_width]
    share = drawn[: region.shape[0], : region.shape[1], None] / np.float32(255)
    region[:] = (region * (1 - share) + np.array(ink, np.float32) * share).round().astype(np.uint8)
