"""COCO's JSON layout for results: images, annotations with scores, categories.

https://cocodataset.org/#format-data. Segmentations are compressed run lengths, whichever encoding the masks came in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.files import write_atomically
from client.result import Detection, Segmentation
from pipeline import rle


class CocoDocument:
    """Gathers results and writes them as one COCO document, which ``pycocotools.coco.COCO`` reads.

    Image and annotation ids count from 1 (pycocotools takes 0 for 'no match'); a category's id is the class index.

    Args:
        info: whatever describes the run, such as precision and protocol.
        class_names: names of categories; all of them are listed. Without, those that occur are listed as ``class_0``…
    """

    def __init__(self, info: Mapping[str, Any], class_names: Mapping[int, str] | None = None) -> None:
        self._info = dict(info)
        self._class_names = dict(class_names or {})
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, segmentation: Segmentation) -> None:
        """Add one image and its instances.

        Raises:
            ValueError: a mask cannot be decoded; nothing is added.
        """
        height, width = segmentation.image_size
        image_id, first = len(self._images) + 1, len(self._annotations) + 1
        annotations = [
            {"id": first + index, "image_id": image_id, **_annotation(detection)}
            for index, detection in enumerate(segmentation)
        ]
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self._annotations.extend(annotations)

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        ids = sorted(set(self._class_names) | {annotation["category_id"] for annotation in self._annotations})
        return {
            "info": self._info,
            "images": list(self._images),
            "annotations": list(self._annotations),
            "categories": [{"id": index, "name": self._class_names.get(index, f"class_{index}")} for index in ids],
        }

    def write(self, path: Path) -> None:
        r"""Write the document, UTF-8; folders are made.

        Bytes of a file's name that are no UTF-8 are written as ``\udc80`` to ``\udcff``, as ``os.fsdecode`` has them.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(
            path, (json.dumps(self.to_dict(), ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        )


def _annotation(detection: Detection) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in detection.box)
    width, height = right - left, bottom - top
    annotation: dict[str, Any] = {
        "category_id": detection.class_id,
        "bbox": [round(value, 3) for value in (left, top, width, height)],
        "area": round(width * height, 3),  # of the box, where there is no mask
        "iscrowd": 0,
        "score": round(detection.score, 6),
    }
    if detection.mask_format != "none":
        counts = detection.encoded_mask if detection.mask_format == "rle" else rle.encode(detection.mask())
        annotation["area"] = rle.area(counts)
        annotation["segmentation"] = {"size": list(detection.image_size), "counts": counts.decode("ascii")}
    return annotation
