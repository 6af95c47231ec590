"""Hostile input against the real server: a share of what `make chaos` sends, and that the checks can fail."""

from __future__ import annotations

import pytest

from pipeline.errors import ImageError
from tests.chaos import hostile, protocol

pytestmark = pytest.mark.server


def test_every_input_ends_in_a_right_answer_or_a_clear_refusal(repository, tmp_path):
    result = hostile.run(repository, tmp_path, inputs=1500, seed=3)
    assert result["faults"] == []
    assert result["inputs"] >= 1500
    assert not (tmp_path / "failures").exists()
    for entry in result["kinds"].values():
        assert entry["answered"] + entry["refused"] + entry["closed"] == entry["inputs"]
    assert sum(entry["answered"] for entry in result["kinds"].values()) > 100
    assert sum(entry["refused"] for entry in result["kinds"].values()) > 100


def test_wrong_outcomes_are_noticed():
    refusal = ImageError("the image is empty (0 bytes); send the bytes of an encoded image")
    assert hostile._image_fault("answered", "48 64", "48 64") == ""
    assert hostile._image_fault("refused", str(refusal), refusal) == ""
    for result, text, expected in (
        ("answered", "48 63", "48 64"),
        ("gRPC INTERNAL", "boom", "48 64"),
        ("answered", "48 64", refusal),
        ("refused", "something else", refusal),
        ("HTTP 500", str(refusal), refusal),
    ):
        assert hostile._image_fault(result, text, expected)
    request = protocol.Malformed("kind", "name", http=b"")
    assert hostile._request_fault(request, "refused", "no such model") == ""
    for result, text in (("answered", "48 64"), ("closed", ""), ("HTTP 503", ""), ("refused", "the server is busy")):
        assert hostile._request_fault(request, result, text)


def test_growth_is_noticed():
    before = {"memory_mb": 1000.0, "descriptors": 90.0, "regions": 4.0}
    assert hostile._resource_faults(before, before | {"memory_mb": 1090.0}) == []
    assert len(hostile._resource_faults(before, {"memory_mb": 1200.0, "descriptors": 200.0, "regions": 4.0})) == 2
