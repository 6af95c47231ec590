"""Sets of scenes on disk: JPEG images, COCO annotations and a hash over all of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import PIL

from base.cpus import usable_cpus
from base.parallel import in_order
from base.progress import Steps
from pipeline import rle
from scenes.cards import CardSource
from scenes.errors import SceneError
from scenes.scene import SIDES_PX, SPLITS, Scene, generate_scene

GENERATOR_VERSION: Final = 1
"""Raised with every change to what a seed looks like, so that older sets are drawn again."""
CATEGORY: Final = {"id": 1, "name": "identity card"}
"""The one COCO category; class 0 of the network."""
_IMAGES: Final = "images"
_ANNOTATIONS: Final = "annotations.json"
_RECORD: Final = "dataset.json"


@dataclass(frozen=True)
class SceneDataset:
    """A set of scenes on disk."""

    images: Path  # folder of the JPEG images, named by seed
    annotations: Path  # COCO instances file, masks as compressed RLE
    count: int  # how many images there are


def write_dataset(
    folder: Path,
    split: str,
    count: int,
    *,
    cards: CardSource,
    steps: Steps,
    sides_px: tuple[int, int] = SIDES_PX,
) -> SceneDataset:
    """Write the first ``count`` scenes of ``split`` to ``folder/split``, unless the same ones are there, whole.

    The set is written beside its place and renamed, so a reader never sees half of one. A set of other cards, seeds or
    library versions is replaced.

    Raises:
        SceneError: the split is unknown or too short, or ``folder/split`` holds something else than a set of scenes.
    """
    if split not in SPLITS:
        raise SceneError(f"split {split!r}; allowed: {', '.join(SPLITS)}")
    if not 1 <= count <= len(SPLITS[split]):
        raise SceneError(f"{count} scenes; allowed: 1 to {len(SPLITS[split])}")
    seeds = SPLITS[split][:count]
    target = folder / split
    recipe = {
        "generator": GENERATOR_VERSION,
        "first_seed": seeds.start,
        "count": count,
        "cards": cards.digest(),
        "sides_px": list(sides_px),
        "libraries": {"numpy": np.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__},
    }
    dataset = SceneDataset(target / _IMAGES, target / _ANNOTATIONS, count)
    if _is_present(target, recipe):
        return dataset
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=folder) as beside:
        new = Path(beside) / split
        _write(new, seeds, cards, sides_px, steps)
        record = {"sha256": _hash(new), "recipe": recipe}
        (new / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if _is_present(target, recipe):  # another process was faster
            return dataset
        if target.exists():
            target.rename(Path(beside) / "old")
        new.rename(target)
    return dataset


def _is_present(target: Path, recipe: dict[str, Any]) -> bool:
    """Whether ``target`` holds the set of ``recipe``, whole."""
    if not target.exists():
        return False
    try:
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
        known, sha256 = record["recipe"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{target} exists and is no set of scenes; move it away or choose another folder") from error
    return bool(known == recipe and sha256 == _hash(target))


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [*sorted((folder / _IMAGES).glob("*.jpg")), folder / _ANNOTATIONS]:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(path.name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _write(folder: Path, seeds: range, cards: CardSource, sides_px: tuple[int, int], steps: Steps) -> None:
    (folder / _IMAGES).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with steps.step("draw scenes", f"seeds {seeds.start} to {seeds.stop - 1}", total=len(seeds)) as advance:

        def drawn(seed: int) -> Scene:
            return generate_scene(seed, cards=cards, sides_px=sides_px)

        for seed, scene in zip(seeds, in_order(drawn, seeds, usable_cpus()), strict=True):
            name = f"{seed:07d}.jpg"
            (folder / _IMAGES / name).write_bytes(scene.jpeg)
            height, width = scene.image.shape[:2]
            images.append({"id": seed, "file_name": name, "height": height, "width": width})
            annotations += _annotations(scene, seed, len(annotations) + 1)
            advance()
    content = {"images": images, "annotations": annotations, "categories": [CATEGORY]}
    (folder / _ANNOTATIONS).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene. Their ids start at 1, as pycocotools takes a match with id 0 for none."""
    return [
        {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": CATEGORY["id"],
            "segmentation": {"size": list(mask.shape), "counts": rle.encode(mask).decode("ascii")},
            "area": int(np.count_nonzero(mask)),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "iscrowd": 0,
        }
        for index, (mask, box) in enumerate(zip(scene.masks, scene.boxes, strict=True))
    ]
