"""The JSON is read by pycocotools, and means there what it means here."""

import json
import os

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from client.coco import CocoDocument
from client.result import Segmentation
from tests.unit.client.results import disc, empty_segmentation, segmentation_of

MASKS = [disc(90, 120, 40, 30, 25), disc(90, 120, 90, 60, 20)]


@pytest.fixture
def path(tmp_path):
    document = CocoDocument({"precision": "int8", "protocol": "grpc"}, {0: "card"})
    document.add("a/1.jpg", segmentation_of(MASKS, class_ids=[0, 2]))
    document.add("a/empty.jpg", empty_segmentation(50, 70))
    document.add("b/1.jpg", segmentation_of(MASKS[1:], class_ids=[2]))
    document.write(tmp_path / "out" / "result.json")
    return tmp_path / "out" / "result.json"


def test_pycocotools_reads_it(path):
    coco = COCO(path)
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a/1.jpg", "a/empty.jpg", "b/1.jpg"]
    assert {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())} == {
        0: "card",
        2: "class_2",
    }
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert np.array_equal(coco.annToMask(first), MASKS[0])
    assert np.array_equal(coco.annToMask(second), MASKS[1])
    assert first["area"] == MASKS[0].sum()
    assert first["bbox"] == [15, 5, 51, 51]
    assert coco.getAnnIds(imgIds=[2]) == []
    assert coco.dataset["info"] == {"precision": "int8", "protocol": "grpc"}


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_it_scores_fully_against_itself(path, kind):
    truth = COCO(path)
    found = truth.loadRes(json.loads(path.read_text())["annotations"])
    evaluation = COCOeval(truth, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def png(mask):
    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()


def polygon(mask):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return json.dumps([contour.reshape(-1).tolist() for contour in contours]).encode()


@pytest.mark.parametrize("encode", [png, polygon])
def test_other_encodings_become_run_lengths(encode):
    found = segmentation_of(MASKS[:1])
    document = CocoDocument({})
    encoded = (encode(MASKS[0]),)
    document.add(
        "x", Segmentation(found.boxes, found.scores, found.class_ids, encoded, encode.__name__, found.image_size)
    )
    counts = found.encoded_masks[0].decode()
    assert document.to_dict()["annotations"][0]["segmentation"] == {"size": [90, 120], "counts": counts}


def test_without_masks_the_box_is_the_area():
    found = segmentation_of(MASKS[:1])
    document = CocoDocument({})
    document.add("x", Segmentation(found.boxes, found.scores, found.class_ids, (b"",), "none", found.image_size))
    (annotation,) = document.to_dict()["annotations"]
    assert annotation["area"] == 51 * 51
    assert "segmentation" not in annotation


def test_a_broken_mask_adds_nothing():
    found = segmentation_of(MASKS)
    document = CocoDocument({})
    broken = Segmentation(
        found.boxes, found.scores, found.class_ids, (found.encoded_masks[0], b"\xff"), "rle", found.image_size
    )
    with pytest.raises(ValueError, match="run lengths"):
        document.add("x", broken)
    assert document.to_dict()["images"] == document.to_dict()["annotations"] == []


def test_names_that_are_no_utf8_are_written_and_come_back_as_they_were(tmp_path):
    name = os.fsdecode(b"foto \xff.jpg")
    document = CocoDocument({})
    document.add(name, segmentation_of(MASKS))
    document.add("größe.jpg", segmentation_of(MASKS))
    document.write(tmp_path / "result.json")
    written = (tmp_path / "result.json").read_bytes()
    assert b"foto \\udcff.jpg" in written
    images = json.loads(written.decode("utf-8"))["images"]
    assert [os.fsencode(image["file_name"]) for image in images] == [b"foto \xff.jpg", "größe.jpg".encode()]
