"""Sets of scenes on disk: JPEG images, COCO annotations and a hash over all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import PIL

from base.progress import Steps
from pipeline import rle
from scenes.card import CardSource
from scenes.errors import SceneError
from scenes.options import SPLITS, SceneOptions, seeds_from
from scenes.scene import Scene, generate_scene

GENERATOR_VERSION: Final = 1
"""Raised with every change to what a seed looks like, so that sets drawn before are drawn anew."""
CATEGORY: Final = {"id": 1, "name": "identity card"}
"""The one COCO category; class 0 of the network."""
_IMAGES: Final = "images"
_ANNOTATIONS: Final = "annotations.json"
_RECORD: Final = "dataset.json"


@dataclass(frozen=True)
class SceneDataset:
    """A set of scenes on disk.

    Attributes:
        images: folder of the JPEG images, named by seed.
        annotations: COCO instances file, masks as compressed RLE.
        count: how many images there are.
        sha256: over the names and contents of the images and the annotations, hexadecimal.
        is_new: whether it was written just now; False if the very same set was there already.
    """

    images: Path
    annotations: Path
    count: int
    sha256: str
    is_new: bool


def write_dataset(
    folder: Path,
    split: str,
    count: int,
    *,
    cards: CardSource,
    options: SceneOptions | None = None,
    first: int = 0,
    steps: Steps | None = None,
) -> SceneDataset:
    """Write ``count`` scenes of ``split`` to ``folder/split``, unless the same ones are there, whole.

    The set is written beside its place and renamed, so a half-written one is never seen. One drawn from other
    options, cards, seeds or library versions is replaced.

    Args:
        folder: made if it does not exist.
        split: ``calibration`` or ``verification``.
        count: how many scenes, at least 1.
        cards: where the cards come from.
        options: what the scenes may look like.
        first: how many of the split's seeds to leave out at its start.
        steps: shows progress; standard error by default.

    Raises:
        SceneError: the split is unknown or too short, a background cannot be read, or ``folder/split`` holds something
            that this function did not write.
    """
    if split not in SPLITS:
        raise SceneError(f"split {split!r}; allowed: {', '.join(SPLITS)}")
    if count < 1:
        raise SceneError(f"{count} scenes; allowed: 1 or more")
    if not 0 <= first < len(SPLITS[split]):
        raise SceneError(f"first is {first}; allowed for the {split} split: 0 to {len(SPLITS[split]) - 1}")
    seeds = seeds_from(SPLITS[split].start + first, count)
    options = options or SceneOptions()
    target = folder / split
    recipe = _recipe(seeds, cards, options)
    present = _present(target, recipe)
    if present is not None:
        return present
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=folder))
    try:
        _write(beside, seeds, cards, options, steps or Steps())
        sha256 = _hash(beside)
        (beside / _RECORD).write_text(
            json.dumps({"sha256": sha256, "recipe": recipe}, indent=1) + "\n", encoding="utf-8"
        )
        beside.chmod(0o755)  # mkdtemp keeps others out; the server may run as another user
        present = _present(target, recipe)
        if present is not None:  # another process was faster
            return present
        _replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return SceneDataset(target / _IMAGES, target / _ANNOTATIONS, count, sha256, is_new=True)


def _recipe(seeds: range, cards: CardSource, options: SceneOptions) -> dict[str, Any]:
    """All that decides on the pixels, as JSON gives it back."""
    settings = asdict(options) | {"backgrounds": [_file_hash(path) for path in options.backgrounds]}
    recipe = {
        "generator": GENERATOR_VERSION,
        "first_seed": seeds.start,
        "count": len(seeds),
        "cards": cards.digest(),
        "options": settings,
        "libraries": {"numpy": np.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__},
    }
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    return plain


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SceneError(f"background {path}: {error.strerror}; remove or replace it") from error


def _present(target: Path, recipe: dict[str, Any]) -> SceneDataset | None:
    """The set in ``target`` if it is the one of ``recipe``, and whole."""
    if not target.exists():
        return None
    try:
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
        known, sha256 = record["recipe"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{target} exists and is no set of scenes; move it away or choose another folder") from error
    if known != recipe or sha256 != _hash(target):
        return None
    return SceneDataset(target / _IMAGES, target / _ANNOTATIONS, recipe["count"], sha256, is_new=False)


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [*sorted((folder / _IMAGES).glob("*.jpg")), folder / _ANNOTATIONS]:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(path.name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _write(folder: Path, seeds: range, cards: CardSource, options: SceneOptions, steps: Steps) -> None:
    (folder / _IMAGES).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with steps.step("draw scenes", f"seeds {seeds.start} to {seeds.stop - 1}", total=len(seeds)) as advance:
        for seed in seeds:
            scene = generate_scene(seed, cards=cards, options=options)
            name = f"{seed:07d}.jpg"
            (folder / _IMAGES / name).write_bytes(scene.jpeg)
            height, width = scene.image.shape[:2]
            images.append({"id": seed, "file_name": name, "height": height, "width": width})
            annotations += _annotations(scene, len(annotations) + 1)
            advance()
    content = {"images": images, "annotations": annotations, "categories": [CATEGORY]}
    (folder / _ANNOTATIONS).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _annotations(scene: Scene, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene. Their ids start at 1, as pycocotools takes a match with id 0 for none."""
    height, width = scene.image.shape[:2]
    return [
        {
            "id": first_id + index,
            "image_id": scene.seed,
            "category_id": CATEGORY["id"],
            "segmentation": {"size": [height, width], "counts": rle.encode(mask).decode("ascii")},
            "area": int(np.count_nonzero(mask)),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "iscrowd": 0,
        }
        for index, (mask, box) in enumerate(zip(scene.masks, scene.boxes, strict=True))
    ]


def _replace(beside: Path, target: Path) -> None:
    """Put ``beside`` in the place of ``target``; an older set leaves it first, whole."""
    if not target.exists():
        beside.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / target.name)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
