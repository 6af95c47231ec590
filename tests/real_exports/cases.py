"""The exports that are tried, and what the builder must make of each. Imports nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

CONFIDENCE: Final = 0.25
IOU: Final = 0.45
MAX_DETECTIONS: Final = 300
SQUARE: Final = (640, 640)
SMALL: Final = (320, 320)
WIDE: Final = (384, 640)
NANO: Final = (312, 312)
"""Height and width in pixels. Most options are tried on a quarter of the usual pixels, to save time."""


@dataclass(frozen=True)
class Case:
    """One export."""

    family: str  # a key of :data:`tests.real_exports.models.FAMILIES`
    title: str  # what is special about it, as a user would type it
    options: dict[str, Any] = field(default_factory=dict)  # for ultralytics' exporter
    classes: int = 80  # classes of the model
    input_size: tuple[int, int] = SMALL  # height and width of the network's input
    # None if the builder must serve it; else a regular expression that its refusal must match: the true reason, and
    # what to type instead
    refused: str | None = None
    # If ultralytics itself cannot export or run this, a regular expression that its error must match
    not_exported: str | None = None
    on_server: bool = False  # also ask the real server

    @property
    def name(self) -> str:
        """Of the test and of the file, such as ``yolo11-80-dynamic-true``."""
        words = "".join(letter if letter.isalnum() else " " for letter in self.title).split()
        family = self.family if self.family == "rf-detr" else f"yolo{self.family}"
        return "-".join([family, str(self.classes), *words]).lower()

    @property
    def label(self) -> str:
        """The family, for the table."""
        if self.family == "rf-detr":
            return "RF-DETR-seg"
        name = self.family.partition("-apart")[0]
        if name.startswith("e-"):
            return f"YOLOE-{name[2:]}-seg"
        base, _, kind = name.partition("-")
        return f"YOLO{base}-seg{f' {kind}' if kind else ''}"

    @property
    def arguments(self) -> list[str]:
        """Options of ``python -m builder build`` beside the file: a dynamic export has no fixed size."""
        return ["--input-size", "{}x{}".format(*self.input_size)] if self.options.get("dynamic") else []


def _cases() -> list[Case]:
    dynamic = {"dynamic": True}
    cases = [Case("v8", "static", input_size=SQUARE), Case("v8", "dynamic=True", dynamic, input_size=SQUARE)]
    for family in ("v9c", "11", "12", "26"):
        cases += [
            Case(family, "static", on_server=family == "v9c"),
            Case(family, "dynamic=True", dynamic, on_server=family == "26"),
        ]
    for family in ("v8", "11", "26"):
        cases += [
            Case(family, "dynamic=True simplify=False", {**dynamic, "simplify": False}),
            Case(family, "batch=4", {"batch": 4}),
        ]
    cases += [
        Case("v8", "simplify=False", {"simplify": False}),
        Case("v8", "half=True", {"half": True}),
        Case("v8", "half=True dynamic=True", {**dynamic, "half": True}),
        Case("26-end-to-end", "nms=False half=True", {"nms": False, "half": True}),
        Case("v8", "half=True nms=True", {"half": True, "nms": True}, refused="without half=True.*or without nms=True"),
        Case("v8", "imgsz=384,640", input_size=WIDE, on_server=True),
        Case("11", "dynamic=True imgsz=384,640", dynamic, input_size=WIDE, on_server=True),
        Case("26-end-to-end", "nms=False", {"nms": False}, on_server=True),
        Case("26-end-to-end", "nms=False dynamic=True", {**dynamic, "nms": False}),
        Case("26-end-to-end", "nms=False batch=4", {"nms": False, "batch": 4}),
        Case("v8-apart", "nms=True", {"nms": True, "iou": 0.45}),
        Case("11-apart", "nms=True dynamic=True", {**dynamic, "nms": True, "iou": 0.45}, on_server=True),
        Case("26-apart", "nms=True simplify=False", {"nms": True, "iou": 0.45, "simplify": False}),
        Case("v8-apart", "nms=True batch=4", {"nms": True, "iou": 0.45, "batch": 4}),
        Case("v5", "static"),
        Case("v5", "dynamic=True", dynamic),
        Case("v5", "batch=4", {"batch": 4}),
        Case("v5", "static", classes=3),
        Case("v7", "static"),
        Case("v8-p6", "static"),
        Case("v8-p6", "dynamic=True", dynamic),
        Case("e-11", "static"),
        Case("e-11", "dynamic=True", dynamic),
        Case(
            "rf-detr",
            "static",
            classes=3,
            input_size=NANO,
            refused=r"dynamic batch \(`model.export\(dynamic_batch=True\)`",
        ),
        Case("rf-detr", "dynamic_batch=True", {"dynamic_batch": True}, classes=3, input_size=NANO, on_server=True),
        Case("12", "static", classes=3),
        Case("11", "dynamic=True", dynamic, classes=3),
        Case("11", "dynamic=True", dynamic, classes=1),
        Case("v8", "static", classes=1),
    ]
    # 18 is ultralytics' own choice. The builder converts 11 and 12 to 17, and 23 to 22; from 18 on, ReduceMax takes its
    # axes another way.
    cases += [Case("v8", f"opset={opset}", {"opset": opset}, classes=1) for opset in (11, 12, 13, 17, 22, 23)]
    cases.append(Case("v8", "opset=24", {"opset": 24}, classes=1, not_exported="Unsupported onnx_opset_version: 24"))
    return cases


CASES: Final = tuple(_cases())
