"""COCO's two JSON layouts: a dataset (images, annotations with scores, categories), and a list of results.

https://cocodataset.org/#format-data and https://cocodataset.org/#format-results. Segmentations are compressed run
lengths, for every mask format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from client.files import write_atomically
from pipeline import rle
from pipeline.result import Detection, Segmentation


class CocoDocument:
    """Collects results and writes them as one COCO document, which ``pycocotools.coco.COCO`` reads.

    Image and annotation ids count from 1 (pycocotools takes 0 for 'no match'); a category's id is the class index.

    Args:
        info: describes the run, such as precision and protocol.
        class_names: names of categories; all of them are listed. Without, those of the results; where these have none,
            those that occur are listed as ``class_0``…
    """

    def __init__(self, info: Mapping[str, Any], class_names: Mapping[int, str] | None = None) -> None:
        self._info = dict(info)
        self._class_names = dict(class_names or {})
        self._given_names = bool(class_names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, segmentation: Segmentation) -> None:
        """Add one image and its instances.

        Raises:
            ValueError: a mask cannot be decoded, or a number is not finite; nothing is added.
        """
        height, width = segmentation.image_size
        image_id, first = len(self._images) + 1, len(self._annotations) + 1
        annotations = [
            {"id": first + index, "image_id": image_id, **_annotation(detection)}
            for index, detection in enumerate(segmentation)
        ]
        for index, name in enumerate(segmentation.class_names if not self._given_names else ()):
            self._class_names.setdefault(index, name)
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
            path,
            (json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace"),
        )


@dataclass(frozen=True)
class CocoIds:
    """Image and category ids of an annotations file."""

    images: Mapping[str, Mapping[str, Any]]  # file name, as the annotations write it, to the image's entry
    categories: Mapping[str, int]  # name to id, in the order of the ids
    path: Path  # of the file, for messages

    @classmethod
    def read(cls, path: Path) -> CocoIds:
        """Read the ids of a COCO annotations file.

        Raises:
            ValueError: it cannot be read, or is no such file; names it.
        """
        try:
            document = json.loads(path.read_bytes())
            images = {str(image["file_name"]): image for image in document["images"]}
            numbers = sorted((int(entry["id"]), str(entry["name"])) for entry in document["categories"])
            for image in images.values():
                int(image["id"])
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: no COCO annotations ({type(error).__name__}: {error}); expected: an object with images (id, "
                "file_name) and categories (id, name)"
            ) from error
        return cls(images, {name: number for number, name in numbers}, path)

    def image_id(self, name: str, size: tuple[int, int]) -> int:
        """Id of the image whose file name ends like ``name``, or has its last part where that is unique.

        Args:
            name: relative path of the image.
            size: its height and width.

        Raises:
            ValueError: there is none or more than one, or it is of another size there.
        """
        places = [known for known in self.images if _same_path(known, name)]
        places = places or [known for known in self.images if PurePosixPath(known).name == PurePosixPath(name).name]
        if len(places) != 1:
            raise ValueError(f"{len(places) or 'no'} images of {self.path} are called {PurePosixPath(name).name}")
        image = self.images[places[0]]
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated != size:
            raise ValueError(
                f"{size[1]}x{size[0]} pixels, and {stated[1]}x{stated[0]} in {self.path}; annotate the upright image"
            )
        return int(image["id"])

    def category_id(self, class_id: int, class_names: Mapping[int, str]) -> int:
        """Id of the category of the class's name, or of its place among the ids where no names are known.

        Raises:
            ValueError: there is none.
        """
        names = list(self.categories)
        name = class_names.get(class_id) if class_names else names[class_id] if class_id < len(names) else None
        if name is None or name not in self.categories:
            what = f"class {class_id}" + (f" ({name})" if name else "")
            raise ValueError(f"{what} is no category of {self.path}: {', '.join(names) or 'there are none'}")
        return self.categories[name]


class CocoResults:
    """Collects results and writes them as COCO results for ``pycocotools.coco.COCO.loadRes``.

    Args:
        ids: of the annotations that they are compared with; without, images count from 1 in their order, and
            categories are the class indices plus 1.
        class_names: by which classes are looked up among the categories; without, the results' names where all of them
            are categories, else class 0 is the first of them.
    """

    def __init__(self, ids: CocoIds | None = None, class_names: Mapping[int, str] | None = None) -> None:
        self._ids = ids
        self._class_names = dict(class_names or {})
        self._results: list[dict[str, Any]] = []
        self._count = 0

    def add(self, file_name: str, segmentation: Segmentation) -> None:
        """Add one image's instances.

        Raises:
            ValueError: a mask cannot be decoded, a number is not finite, or the annotations know no such image or
                category; nothing is added.
        """
        self._count += 1
        image_id = self._count if self._ids is None else self._ids.image_id(file_name, segmentation.image_size)
        names = self._class_names
        if not names and self._ids is not None and set(segmentation.class_names) <= set(self._ids.categories):
            names = dict(enumerate(segmentation.class_names))
        results = []
        for detection in segmentation:
            found = _annotation(detection)
            class_id = detection.class_id
            number = class_id + 1 if self._ids is None else self._ids.category_id(class_id, names)
            result = {"image_id": image_id, "category_id": number, "bbox": found["bbox"], "score": found["score"]}
            if "segmentation" in found:
                result["segmentation"] = found["segmentation"]
            results.append(result)
        self._results.extend(results)

    def to_list(self) -> list[dict[str, Any]]:
        """The results."""
        return list(self._results)

    def write(self, path: Path) -> None:
        """Write the results, UTF-8; folders are made.

        Raises:
            OSError: they cannot be written.
        """
        write_atomically(path, (json.dumps(self._results, allow_nan=False) + "\n").encode())


def _same_path(known: str, name: str) -> bool:
    """Whether the shorter of two relative paths is the end of the other."""
    parts, others = (PurePosixPath(path).parts for path in (known, name))
    shared = min(len(parts), len(others))
    return shared > 1 and parts[-shared:] == others[-shared:]


def _annotation(detection: Detection) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in detection.box)
    if not all(map(math.isfinite, (left, top, right, bottom, detection.score))):
        raise ValueError(f"box {detection.box.tolist()} or score {detection.score} is not finite")
    width, height = right - left, bottom - top
    annotation: dict[str, Any] = {
        "category_id": detection.class_id,
        "bbox": [round(value, 3) for value in (left, top, width, height)],
        "area": round(width * height, 3),  # of the box, where there is no mask
        "iscrowd": 0,
        "score": round(detection.score, 6),
    }
    if detection.track_id is not None:
        annotation["track_id"] = detection.track_id
    if detection.mask_format != "none":
        counts = detection.encoded_mask if detection.mask_format == "rle" else rle.encode(detection.mask())
        annotation["area"] = rle.area(counts)
        annotation["segmentation"] = {"size": list(detection.image_size), "counts": counts.decode("ascii")}
    return annotation
