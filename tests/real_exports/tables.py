"""The tables that the comparison with real exports writes. Uses the standard library alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KINDS = {
    "yolo": "YOLOv8-, 9-, 11-, 12-, 26-seg, YOLOE, p6",
    "suppressed": "the same with `nms=True`",
    "end-to-end": "YOLO26-seg, `nms=False`",
    "yolov5": "YOLOv5-, YOLOv7-seg",
    "rf-detr": "RF-DETR-seg",
}
"""``--family`` and what people call it."""


def kind_of(family: str, options: str) -> str:
    """The ``--family`` of a row of the table, by its family and options."""
    if "nms=True" in options:
        return "suppressed"
    if family.startswith(("YOLOv5", "YOLOv7")):
        return "yolov5"
    return "rf-detr" if family.startswith("RF-DETR") else "end-to-end" if "end-to-end" in family else "yolo"


def rows_of(markdown: str) -> list[dict[str, str]]:
    """Rows of the first table whose header begins with ``family`` and ``classes``, by the names of its columns."""
    lines = iter(markdown.splitlines())
    header: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[:2] == ["family", "classes"]:
            header = cells
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(header, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


def families(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """One line per kind of export: how many were served and refused, and the worst figures."""
    lines = [
        "| `--family` | exports | served, refused | box, px | score | mask IoU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, title in KINDS.items():
        mine = [row for row in rows if kind_of(row["family"], row["options"]) == key]
        served = [row for row in mine if row["outcome"] == "served"]
        refused = sum(row["outcome"] == "refused" for row in mine)
        worst = (
            f"{max(_numbers(served, 'box, px')):.4f}",
            f"{max(_numbers(served, 'score')):.6f}",
            f"{min(_numbers(served, 'exact mask IoU')):.4f}",
        )
        lines.append(f"| `{key}` | {title} | {len(served)}, {refused} | {' | '.join(worst)} |")
    return lines


def _numbers(rows: Iterable[Mapping[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def inspection(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ``inspect`` says of files, one after another."""
    lines: list[str] = []
    for one in found:
        facts = "; ".join(f"{name}: {value}" for name, value in one["facts"].items() if name != "class names")
        verdict = f"**{one['title']} (`--family {one['family']}`): can be built.**" if one["served"] else one["refusal"]
        lines += [f"## {one['name']}", "", f"{facts}.", "", "| question | answer | evidence |", "| --- | --- | --- |"]
        lines += [f"| {row['question']} | {row['answer']} | {row['evidence']} |" for row in one["evidence"]]
        lines += ["", verdict, ""]
    return lines
