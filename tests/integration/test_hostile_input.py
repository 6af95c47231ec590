"""Hostile input against the real server: a share of what `make chaos` sends, and that the checks can fail."""

from __future__ import annotations

import pickle
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from client.errors import SegmentationError
from pipeline.images import decode_image
from pipeline.result import Segmentation
from tests.chaos import hostile, hostile_watch, protocol, protocol_raw
from tests.chaos.corpus_crafted import many_scans, png, tiff
from tests.chaos.corpus_mutations import mutate
from tests.chaos.corpus_valid import chunk, encoded, valid_images
from tests.chaos.hostile_judge import Answer, Sample, answer_fault, image_fault, read_http, request_fault
from tests.chaos.hostile_send import Sender, kept_input
from tests.chaos.hostile_watch import Watcher, resource_faults

server_test = pytest.mark.server

PICTURE = valid_images()["png rgb"]
SIZE = decode_image(PICTURE).shape[:2]
FOUND = Segmentation(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), (), "rle", (SIZE[0], SIZE[1])
)


def chance(seed):
    return random.Random(seed)  # noqa: S311 - no secret


@server_test
def test_every_input_ends_in_a_right_answer_or_a_clear_refusal(patient_repository, tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_watch, "PROMPT_S", 30.0)  # others may have the cores; `make chaos` holds the promise
    result = hostile.run(patient_repository, tmp_path, inputs=1500, seed=3)
    assert result["faults"] == []
    assert result["inputs"] == 1500
    assert not (tmp_path / "failures").exists()
    for entry in result["kinds"].values():
        assert entry["answered"] + entry["refused"] + entry["closed"] == entry["inputs"]
    assert sum(entry["answered"] for entry in result["kinds"].values()) > 100
    assert sum(entry["refused"] for entry in result["kinds"].values()) > 100
    assert result["answers_compared_bit_for_bit"] > 100
    assert result["watched"]["requests"] > 3


def animation_outside():
    """OpenCV 4.11 dies of it: frames larger than the canvas."""
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 0, 0, 9, 9))
    animation = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + control
    return png(96, 64, zlib.compress((b"\0" + bytes(96 * 3)) * 64), animation)


def png_bomb():
    """libpng inflates what follows the last pixel: a minute for 16 MB."""
    packer = zlib.compressobj(9)
    return png(96, 64, b"".join(packer.compress(bytes(1 << 20)) for _ in range(2000)) + packer.flush())


def tiff_bomb():
    """libtiff and Pillow copy what each entry points to: 2 GB of 2 MB."""
    layout = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096}
    same = {30_000 + tag: (1, 1_900_000, 8) for tag in range(1000)}
    return tiff({tag: (4, 1, value) for tag, value in layout.items()} | same, bytes(2_000_000))


def segments_bomb():
    """A list of a million segments, made for every image."""
    jpeg = valid_images()["jpeg baseline"]
    return jpeg[:2] + b"\xff\xfe\0\2" * 1_000_000 + jpeg[2:]


@server_test
@pytest.mark.parametrize(
    ("data", "expects"),
    [
        (animation_outside(), "answered"),
        (png_bomb(), "refused"),
        (tiff_bomb(), "refused"),
        (segments_bomb(), "refused"),
        (many_scans(4000, 3000, 1000), "refused"),
        (PICTURE[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(40) + chunk(b"IEND", b""), "refused"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(40), "refused"),
    ],
    ids=["animation", "png bomb", "tiff bomb", "segments", "scans", "chunk of 2 GB", "directory far away"],
)
def test_what_once_did_harm(server, tmp_path, data, expects):
    sender = Sender(server.grpc_url, server.http_url, tmp_path)
    (outcome,) = sender.send_all(iter([Sample("once harmful", "", data, expects)]))
    assert outcome.fault == ""
    # Well under a second on a free core; each of them once took a minute, two gigabytes, or the process.
    assert outcome.seconds < 10


def test_a_seed_gives_the_same_inputs():
    drawn = [[one.data for one in hostile.mutations(list(valid_images().items()), chance(5), 50)] for _ in "ab"]
    assert drawn[0] == drawn[1]
    requests = [[one.http or one.message or one.grpc for one in hostile.malformed(chance(5))] for _ in "ab"]
    assert requests[0] == requests[1]
    ways = {mutate(chance(number), [("png", PICTURE)])[0] for number in range(200)}
    assert len(ways) > 10


def test_wrong_outcomes_of_images_are_noticed():
    good = Sample("kind", "name", PICTURE)
    assert image_fault(good, Answer("answered", segmentations=(FOUND,))) == ""
    other_size = Segmentation(FOUND.boxes, FOUND.scores, FOUND.class_ids, (), "rle", (SIZE[0], SIZE[1] + 1))
    for answer in (
        Answer("answered", segmentations=(other_size,)),
        Answer("answered"),
        Answer("refused", "an image that is not there"),
        Answer("gRPC INTERNAL", "boom"),
        Answer("HTTP 503", "the server is busy"),
        Answer("closed"),
    ):
        assert image_fault(good, answer)
    bad = Sample("kind", "name", b"")
    refusal = "the image is empty (0 bytes); send the bytes of an encoded image"
    assert image_fault(bad, Answer("refused", refusal)) == ""
    for answer in (Answer("answered", segmentations=(FOUND,)), Answer("refused", "no"), Answer("HTTP 500", refusal)):
        assert image_fault(bad, answer)
    assert image_fault(Sample("kind", "name", PICTURE, "refused"), Answer("answered", segmentations=(FOUND,)))
    assert image_fault(Sample("kind", "name", b"", "answered"), Answer("refused", refusal))


def test_wrong_outcomes_of_requests_are_noticed():
    request = protocol.Malformed("kind", "name", http=b"")
    assert request_fault(request, Answer("refused", "no such model")) == ""
    for answer in (
        Answer("answered", segmentations=(FOUND,)),
        Answer("closed"),
        Answer("gRPC INTERNAL", "boom"),
        Answer("HTTP 503", ""),
        Answer("refused", "the server is busy"),
        Answer("refused"),
    ):
        assert request_fault(request, answer)
    assert read_http(500, b'{"error":"boom"}').result == "HTTP 500"
    assert read_http(200, b"{}").result == "answer that cannot be read"


def test_impossible_answers_are_noticed():
    def with_box(x2, score=0.5):
        return Answer(
            "answered",
            segmentations=(
                Segmentation(
                    np.array([[0, 0, x2, 1]], np.float32),
                    np.array([score], np.float32),
                    np.zeros(1, np.int32),
                    (b"",),
                    "none",
                    (SIZE[0], SIZE[1]),
                ),
            ),
        )

    assert "boxes" in answer_fault(with_box(SIZE[1] + 5))
    assert "boxes" in answer_fault(with_box(float("nan")))
    assert "scores" in answer_fault(with_box(1, score=1.5))


def test_growth_is_noticed():
    before = {"memory_mb": 1000.0, "descriptors": 90.0, "regions": 4.0, "shared_memory_mb": 20.0}
    assert resource_faults(before, before | {"memory_mb": 1090.0}) == []
    grown = {"memory_mb": 1200.0, "descriptors": 200.0, "regions": 5.0, "shared_memory_mb": 30.0}
    assert len(resource_faults(before, grown)) == 4


@server_test
def test_a_blocked_photograph_is_noticed(server, reference):
    watcher = Watcher(server, "int8", reference.photographs[0].read_bytes())

    class Unreachable:
        def segment(self, _):
            raise SegmentationError("gone")

    watcher.look(Unreachable())
    watcher.look(watcher._clients[0])
    assert [fault.split(":")[0] for fault in watcher.faults] == ["an ordinary photograph failed meanwhile"]
    watcher._first = "another"
    watcher.look(watcher._clients[1])
    assert "differently" in watcher.faults[-1]
    for client in watcher._clients:
        client.close()


@server_test
def test_a_failed_input_is_kept_and_can_be_sent_again(server, tmp_path):
    image = encoded(Image.new("RGB", (64, 48)), "JPEG")
    sender = Sender(server.grpc_url, server.http_url, tmp_path)
    wrong = Sample("kind", "name", PICTURE, "refused")
    requests = list(protocol_raw.raw_requests(image, chance(0)))
    raw = next(one for one in requests if one.kind == "gRPC methods")
    outcomes = sender.send_all(iter([wrong, protocol.Malformed("kind", "fine", message=b"", valid=False), raw]))
    assert [bool(one.fault) for one in sorted(outcomes, key=lambda one: one.name)] == [False, True, False]
    assert (tmp_path / "kind_name").read_bytes() == PICTURE
    assert kept_input(tmp_path / "kind_name.pickle") == wrong
    (tmp_path / "x.pickle").write_bytes(pickle.dumps("no input"))
    with pytest.raises(ValueError, match="holds no input"):
        kept_input(tmp_path / "x.pickle")


@server_test
def test_answers_are_compared_with_the_network(repository):
    sample = Sample("kind", "name", PICTURE)
    assert hostile.wrong_answers(repository, [(sample, "a fingerprint of something else")]) != []
