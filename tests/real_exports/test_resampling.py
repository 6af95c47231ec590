"""``--resample bilinear``: the network's input is what ultralytics makes of a picture, and so are boxes and scores."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from base.cache import cache_dir
from base.progress import Steps
from builder.__main__ import main as builder
from client import SegmentationClient
from pipeline.letterbox import Geometry
from pipeline.preprocess import preprocess
from scenes import CardSource, write_dataset
from scenes.reference import fetch_reference
from serving.server import ServerOptions, TritonServer
from tests.real_exports.cases import CONFIDENCE, IOU, MAX_DETECTIONS, NANO, SQUARE, WIDE
from tests.real_exports.conftest import ROOT

pytestmark = pytest.mark.skipif(
    "EXPORTS_VENV" not in os.environ, reason="an environment with ultralytics is missing; make test-exports runs it"
)
SCENES = 32
SETS = {"0.2 to 1.6 megapixels": (480, 1280), "6 to 16 megapixels": (2500, 4000)}
"""Sides of the generated scenes, in pixels; the first set holds the photographs, too."""


def owners_answers(pictures: Path, out: Path, *options: str) -> None:
    python = ROOT / os.environ["EXPORTS_VENV"] / "bin" / "python"
    command = [str(python), "-m", "tests.real_exports.resampling", str(pictures), str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def photograph(height: int, width: int) -> np.ndarray:
    """Of the reference's own, so large and with noise, so that no two ways of sampling agree by chance."""
    path = fetch_reference().photographs[(height + width) % 5]
    image = cv2.resize(cv2.imread(str(path))[..., ::-1], (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(height * width).integers(-20, 21, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph(1400, 2001), "JPEG", quality=92, exif=exif)


SIZES = [
    *((480, 640), (1080, 1920), (3000, 4000), (333, 777), (1200, 630), (640, 640), (641, 639)),
    *((60, 80), (1, 1), (2, 5000), (3000, 40), (405, 768), (1287, 5121), (960, 1280)),  # 405 x 768 rounds a half
]
PICTURES = {
    **{f"{height}x{width}.jpg": lambda size=(height, width): encoded(photograph(*size), "JPEG", quality=92)
       for height, width in SIZES},
    **{f"turned-{orientation}.jpg": lambda orientation=orientation: turned(orientation) for orientation in range(1, 9)},
    "progressive.jpg": lambda: encoded(photograph(1500, 2000), "JPEG", progressive=True),
    "gray.jpg": lambda: encoded(photograph(1500, 2000)[..., 0], "JPEG"),
    "photograph.png": lambda: encoded(photograph(700, 1000), "PNG"),
    "alpha.png": lambda: encoded(np.dstack([photograph(700, 1000), np.full((700, 1000), 90, np.uint8)]), "PNG"),
    "photograph.webp": lambda: encoded(photograph(700, 1000), "WEBP", quality=90),
    "photograph.bmp": lambda: encoded(photograph(700, 1000), "BMP"),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "pictures").mkdir()
    for name, make in PICTURES.items():
        (folder / "pictures" / name).write_bytes(make())
    owners_answers(folder / "pictures", folder / "answers")
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_the_networks_input_is_ultralytics_own_bit_for_bit(inputs, name):
    data = (inputs / "pictures" / name).read_bytes()
    with np.load(inputs / "answers" / f"{name}.npz") as answers:
        for kind, size in {"square": SQUARE, "wide": WIDE, "stretched": NANO}.items():
            out = np.empty((*size, 3), np.uint8)
            preprocess(data, out, bilinear=True, stretch=kind == "stretched")
            np.testing.assert_array_equal(out, answers[kind], err_msg=kind)
        # rfdetr samples in floating point, OpenCV in steps of 1/2048: the same samples, rounded to whole grays.
        assert np.abs(out.transpose(2, 0, 1) - answers["rfdetr"] * 255.0).max() <= 1.0
    area = np.empty_like(out)
    preprocess(data, area, stretch=True)
    if min(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]) > 700:
        assert np.abs(area.astype(int) - out).max() > 20


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "repository"
    reference = fetch_reference()
    verification = ["--verify-images", *map(str, reference.photographs)]
    assert builder(["build", "--precisions", "fp32", "--repository", str(folder), *verification]) == 0
    return folder


@pytest.mark.parametrize("name", SETS)
def test_boxes_and_scores_are_those_of_predict(repository, resampling, tmp_path, name):
    """Whole photographs through the real server, against ultralytics' ``predict`` on the same files and model."""
    reference = fetch_reference()
    cards = CardSource.from_photographs(reference.photographs)
    where = cache_dir() / "scenes" / "x".join(map(str, SETS[name]))
    scenes = write_dataset(where, "verification", SCENES, cards=cards, steps=Steps(), sides_px=SETS[name])
    pictures = sorted(scenes.images.iterdir()) + list(reference.photographs if name == next(iter(SETS)) else ())
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures:
        (folder / picture.name).symlink_to(picture)
    owners_answers(folder, tmp_path / "answers", "--model", str(reference.onnx))
    answers = {path.name: np.load(tmp_path / "answers" / f"{path.name}.npz") for path in pictures}
    for path in pictures:
        out = np.empty((*SQUARE, 3), np.uint8)
        preprocess(path.read_bytes(), out, bilinear=True)
        np.testing.assert_array_equal(out, answers[path.name]["square"], err_msg=path.name)

    found = {way: compared(served(repository, way, pictures), answers) for way in ("area", "bilinear")}
    for way, (boxes, scores, missing, extra) in found.items():
        resampling(name, way, len(pictures), boxes, scores, missing, extra)
    boxes, scores, missing, extra = found["bilinear"]
    assert (missing, extra) == (0, 0)
    assert len(boxes) >= 60
    assert max(boxes) < 0.01
    assert max(scores) < 1e-4
    assert max(found["area"][0]) > 0.5, "the pictures do not tell one way from the other"


def served(repository: Path, way: str, pictures: list[Path]) -> dict[str, tuple[np.ndarray, Geometry]]:
    """By picture: rows of x1, y1, x2, y2 in the network's pixels, score, class; and where it lies in the input."""
    options = ServerOptions(repository, precisions=("fp32",), resample=way)
    rows = {}
    with (
        TritonServer(options) as server,
        SegmentationClient(server.grpc_url, protocol="grpc", precision="fp32") as client,
    ):
        for path in pictures:
            asked = {"confidence": CONFIDENCE, "iou": IOU, "max_detections": MAX_DETECTIONS, "mask_format": "none"}
            (found,) = client.segment_batch([path.read_bytes()], **asked)
            geometry = Geometry.fit(*map(int, found.image_size), *SQUARE)
            scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
            boxes = found.boxes * scale + [geometry.pad_left, geometry.pad_top] * 2
            rows[path.name] = np.column_stack([boxes, found.scores, found.class_ids]), geometry
    return rows


def compared(served, answers) -> tuple[list[float], list[float], int, int]:
    """Per instance, the largest difference of a box's side (network pixels), and of scores; what one side has alone."""
    boxes, scores, missing, extra = [], [], 0, 0
    for name, (ours, geometry) in served.items():
        first = np.array([geometry.pad_left, geometry.pad_top] * 2)
        theirs = answers[name]["rows"].astype(np.float64)
        last = first + [geometry.resized_width, geometry.resized_height] * 2
        theirs[:, :4] = theirs[:, :4].clip(first, last)  # as both do with the image
        free = np.ones(len(ours), bool)
        for row in theirs:
            distance = np.where(free, np.abs(ours[:, :4] - row[:4]).max(1, initial=0), np.inf)
            nearest = int(distance.argmin()) if len(ours) else -1
            if nearest < 0 or distance[nearest] > 20:
                missing += 1
                continue
            free[nearest] = False
            boxes.append(float(distance[nearest]))
            scores.append(abs(ours[nearest, 4] - row[4]))
        extra += int(free.sum())
    return boxes, scores, missing, extra
