"""Hostile input against the real server: a share of what `make chaos` sends."""

from __future__ import annotations

import struct
import zlib

import pytest

from tests.chaos import hostile, hostile_watch
from tests.chaos.corpus_crafted import many_scans, png, tiff
from tests.chaos.corpus_valid import Sample, chunk, valid_images
from tests.chaos.hostile_send import Sender

pytestmark = pytest.mark.server


def test_every_input_ends_in_a_right_answer_or_a_clear_refusal(patient_repository, tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_watch, "PROMPT_S", 30.0)  # others may have the cores; `make chaos` holds the promise
    result = hostile.run(patient_repository, tmp_path, inputs=800, seed=3)
    assert result["faults"] == []
    assert result["inputs"] == 800
    assert not (tmp_path / "failures").exists()
    for entry in result["kinds"].values():
        assert entry["answered"] + entry["refused"] + entry["closed"] == entry["inputs"]
    assert sum(entry["answered"] for entry in result["kinds"].values()) > 100
    assert sum(entry["refused"] for entry in result["kinds"].values()) > 100
    assert result["answers_compared_bit_for_bit"] > 60
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


@pytest.mark.parametrize(
    ("data", "expects"),
    [
        (animation_outside(), "answered"),
        (png_bomb(), "refused"),
        (tiff_bomb(), "refused"),
        (segments_bomb(), "refused"),
        (many_scans(4000, 3000, 1000), "refused"),
        (valid_images()["png rgb"][:33] + b"\x7f\xff\xff\xffIDAT" + bytes(40) + chunk(b"IEND", b""), "refused"),
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
