"""What the host and the kernels share: the structures of ``kernels``, in the same order."""

from __future__ import annotations

from typing import Final

import numpy as np

IMAGE: Final = np.dtype(
    [
        ("pixels", np.uint64),
        *((name, np.float64) for name in ("step_x", "step_y", "pad_x", "pad_y")),
        *((name, np.int32) for name in ("pitch", "transposed", "flip_x", "flip_y", "height", "width")),
        *((name, np.int32) for name in ("top", "left", "resized_height", "resized_width")),
        *((name, np.float32) for name in ("scale_x", "scale_y", "confidence", "iou")),
        *((name, np.int32) for name in ("max_detections", "first_class", "classes", "masks")),
    ],
    align=True,
)

FOUND: Final = np.dtype([("first", np.int32), ("count", np.int32), ("last_score", np.float32), ("unused", np.int32)])

_SPAN: Final = np.dtype(
    [("offset", np.float64), *((name, np.int32) for name in ("first", "count", "low", "high"))], align=True
)

INSTANCE: Final = np.dtype(
    [
        ("x", _SPAN),
        ("y", _SPAN),
        ("box", np.float32, 4),
        ("score", np.float32),
        *((name, np.int32) for name in ("class_id", "image", "row", "first_edge", "edges", "first_byte", "bytes")),
    ],
    align=True,
)

TOTALS: Final = np.dtype([(name, np.int32) for name in ("instances", "edges", "bytes", "unused")])

LEVEL: Final = np.dtype(
    [
        *((name, np.uint64) for name in ("boxes", "classes", "coefficients")),
        *((name, np.int32) for name in ("boxes_stride", "classes_stride", "coefficients_stride")),
        *((name, np.int32) for name in ("width", "points", "first")),
        ("step", np.float32),
        ("unused", np.int32),
    ],
    align=True,
)
