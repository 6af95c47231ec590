"""The JSON is read by pycocotools, and means there what it means here."""

import json
import os

import cv2
import numpy as np
import pytest
from pycocotools import mask as cocomask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from client.coco import CocoDocument, CocoIds, CocoResults
from pipeline.result import Segmentation
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
    """One rectangle per row, along the sides of its pixels; the rows of a disc hold one run each."""
    rows = ((row, np.flatnonzero(mask[row])) for row in range(len(mask)))
    spans = [(row, int(columns[0]), int(columns[-1]) + 1) for row, columns in rows if len(columns)]
    return json.dumps([[x, y, end, y, end, y + 1, x, y + 1] for y, x, end in spans]).encode()


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


def annotated(tmp_path, names=("img/1.jpg", "img/2.jpg"), size=(90, 120), **extra):
    """Ground truth as labeling tools write it: ids with gaps, in any order."""
    document = {
        "images": [
            {"id": 7001 + 13 * index, "file_name": name, "height": size[0], "width": size[1]}
            for index, name in enumerate(names)
        ],
        "categories": [{"id": 90, "name": "stamp"}, {"id": 3, "name": "card"}, {"id": 17, "name": "photo"}],
        "annotations": [],
    } | extra
    for index, image in enumerate(document["images"]):
        encoded = cocomask.encode(np.asfortranarray(MASKS[index].astype(np.uint8)))
        document["annotations"].append(
            {
                "id": index + 1,
                "image_id": image["id"],
                "category_id": [3, 90][index],
                "iscrowd": 0,
                "area": float(cocomask.area(encoded)),
                "bbox": cocomask.toBbox(encoded).tolist(),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(
    ("class_ids", "class_names"), [([0, 2], {}), ([1, 0], {0: "stamp", 1: "card", 2: "photo"})], ids=["order", "names"]
)
def test_results_score_fully_against_the_annotations_they_were_made_from(tmp_path, kind, class_ids, class_names):
    path = annotated(tmp_path)
    results = CocoResults(CocoIds.read(path), class_names)
    for index, name in enumerate(["/data/x/img/1.jpg", "2.jpg"]):
        results.add(name.lstrip("/"), segmentation_of(MASKS[index : index + 1], class_ids=[class_ids[index]]))
    results.write(tmp_path / "out" / "results.json")
    truth = COCO(path)
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "results.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_results_without_annotations_count_from_one():
    results = CocoResults()
    results.add("a.jpg", empty_segmentation(50, 70))
    results.add("b.jpg", segmentation_of(MASKS, class_ids=[0, 2]))
    assert [(found["image_id"], found["category_id"]) for found in results.to_list()] == [(2, 1), (2, 3)]
    assert all({"bbox", "score", "segmentation"} <= set(found) for found in results.to_list())


@pytest.mark.parametrize(
    ("name", "size", "class_id", "names", "fault"),
    [
        ("3.jpg", (90, 120), 0, ("img/1.jpg", "img/2.jpg"), "no images of .*annotations.json are called 3.jpg"),
        ("1.jpg", (90, 120), 0, ("a/1.jpg", "b/1.jpg"), "2 images of"),
        ("img/1.jpg", (120, 90), 0, ("img/1.jpg",), "120x90 in"),
        ("img/1.jpg", (90, 120), 3, ("img/1.jpg",), "class 3 is no category of .*: card, photo, stamp"),
    ],
)
def test_results_that_the_annotations_do_not_know_are_refused(tmp_path, name, size, class_id, names, fault):
    results = CocoResults(CocoIds.read(annotated(tmp_path, names)))
    found = segmentation_of([np.ones(size, bool)], class_ids=[class_id])
    with pytest.raises(ValueError, match=fault):
        results.add(name, found)
    assert results.to_list() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [{}], "categories": []}', '{"images": 1}'])
def test_what_is_no_annotations_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="no COCO annotations"):
        CocoIds.read(tmp_path / "x.json")
    with pytest.raises(ValueError, match="cannot be read"):
        CocoIds.read(tmp_path / "gone.json")
