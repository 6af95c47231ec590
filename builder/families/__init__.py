"""Model families: one file each says how an export is recognized and what its outputs mean.

A family is added by a file here with a subclass of :class:`builder.families.base.Family`, and by its place in
:data:`FAMILIES`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from builder.errors import ExportError
from builder.families.base import Family, Layout, Seen
from builder.families.end_to_end import EndToEnd
from builder.families.metadata import EXPORT_COMMAND, advice_without_suppression
from builder.families.rf_detr import RfDetr
from builder.families.suppressed import Suppressed
from builder.families.yolo import Yolo
from builder.families.yolov5 import YoloV5

FAMILIES: Final[dict[str, Family]] = {
    family.key: family for family in (Suppressed(), Yolo(), YoloV5(), EndToEnd(), RfDetr())
}
"""By the name that ``--family`` takes, in the order in which they are tried."""
NAMES: Final = "; ".join(family.title for family in FAMILIES.values())
"""What is taken, for messages."""

_OTHER_TASKS: Final = {
    "detect": "a detection export: it has boxes and no masks",
    "pose": "a pose export: it has key points and no masks",
    "classify": "a classification export: it has one score per class and nothing else",
    "obb": "an export of oriented boxes: it has no masks",
    "semantic": "a semantic segmentation export: it has one class per pixel and no instances",
    "depth": "a depth export: it has one distance per pixel and no instances",
}
_RTMDET: Final = frozenset({"dets", "labels", "masks"})
_EXPORT_SEG: Final = "Export a *-seg model, for example `yolo export model=yolov8n-seg.pt format=onnx`"
_MOST_SHOWN: Final = 100  # characters of the metadata in a message


def recognize(seen: Seen, wanted: str | None = None) -> Layout:
    """Find the family of an export.

    Args:
        seen: what is known of it.
        wanted: the family, where the user names it.

    Raises:
        ExportError: none knows it, or more than one; says what the file seems to be, and what to do.
    """
    seen = replace(seen, is_named=wanted is not None)
    tried = [FAMILIES[wanted]] if wanted is not None else list(FAMILIES.values())
    found = [layout for layout in (family.recognize(seen) for family in tried) if layout is not None]
    if len(found) > 1 and seen.suppression is None:
        keys = ", ".join(layout.family.key for layout in found)
        raise ExportError(
            f"the outputs ({seen.shown}) may be those of {len(found)} families: {keys}. Say which with --family"
        )
    if found:
        return found[0]
    raise ExportError(_explained(seen, wanted))


def _explained(seen: Seen, wanted: str | None) -> str:
    """What an unknown file seems to be."""
    named = _named(seen)
    if named:
        return named
    four = [list(shape) for shape in seen.outputs.values() if len(shape) == 4]
    if four and not seen.planes:
        return f"the prototypes {four[0]} are not a quarter of the input {seen.height}x{seen.width}"
    if not seen.planes:
        return _without_masks(seen)
    if wanted is None and any(shape[1] <= 1000 and shape[2] <= 1000 for shape in seen.flat.values()):
        return (
            f"the outputs ({seen.shown}) seem to hold final detections, but not as rows of x1, y1, x2, y2, score, "
            f"class and one coefficient per prototype. {advice_without_suppression(seen.metadata)}"
        )
    which = f"--family {wanted}: the outputs" if wanted else "the outputs"
    return (
        f"{which} {seen.shown} at {seen.height}x{seen.width} are those of no family that is known ({NAMES}); for "
        f"example [batch, 4 + classes + 32, {seen.cells((8, 16, 32))}] and [batch, 32, {seen.height // 4}, "
        f"{seen.width // 4}]. Export the model again (`{EXPORT_COMMAND}`)"
    )


def _named(seen: Seen) -> str:
    """What the names of the outputs, or the task in the metadata, say; empty if nothing."""
    if frozenset(seen.outputs) == _RTMDET:
        return (
            f"this looks like an export of RTMDet-Ins by mmdeploy (outputs: {seen.shown}): its masks leave at the size "
            "of the input, behind its suppression, which the builder does not take. Export a YOLO or RF-DETR "
            "segmentation model"
        )
    task = seen.metadata.get("task", "")
    if task not in _OTHER_TASKS:
        return ""
    what = f"{_OTHER_TASKS[task]} (its metadata says task={task!r}; outputs: {seen.shown})"
    return f"this is {what}. {_EXPORT_SEG}"


def _without_masks(seen: Seen) -> str:
    task = seen.metadata.get("task", "")
    if task == "segment":
        return f"the outputs ({seen.shown}) lack the mask prototypes; export the whole model again"
    flat = all(len(shape) == 2 for shape in seen.outputs.values())
    kind = f"its metadata says task={task[:_MOST_SHOWN]!r}" if task else "it has no mask prototypes (a 4-D output)"
    return (
        f"this looks like a {'classification' if flat else 'detection'} export, not a segmentation export: {kind}; "
        f"outputs: {seen.shown}. {_EXPORT_SEG}"
    )
