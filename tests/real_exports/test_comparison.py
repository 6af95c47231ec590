"""The comparison sees what it must, and excuses nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.real_exports.cases import CASES, CONFIDENCE
from tests.real_exports.comparison import Instances, Reference, compare, mask_iou
from tests.real_exports.tables import rows_of


def instances(*rows: tuple[float, float, float, float, float, int]) -> Instances:
    """Of rows of x1, y1, x2, y2, score, class; each mask fills its box in a picture of 100 x 100 pixels."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    masks = np.zeros((len(values), 100, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, values[:, :4].astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances(values[:, :4], values[:, 4], values[:, 5].astype(np.int32), masks)


def difference(one: Instances, other: Instances):
    return compare([Reference(one, one.masks, one.masks.any(axis=(1, 2)))], [other])


A, B = (10, 20, 40, 60, 0.9, 0), (50, 10, 90, 30, 0.6, 1)


def test_equal_instances_in_another_order_do_not_differ():
    found = difference(instances(A, B), instances(B, A))
    assert (found.reference, found.missing, found.extra, found.borderline) == (2, 0, 0, 0)
    assert (found.box_px, found.score, found.mask_iou, found.exact_mask_iou) == (0, 0, 1, 1)


def test_what_differs_is_measured():
    found = difference(instances(A), instances((10, 20, 40, 60.5, 0.8, 0)))
    assert found.box_px == 0.5
    assert found.score == pytest.approx(0.1)
    moved = dataclasses.replace(instances(A), masks=np.roll(instances(A).masks, 10, axis=2))
    assert difference(instances(A), moved).mask_iou == pytest.approx(0.5)


@pytest.mark.parametrize(
    "other",
    [(20, 10, 60, 40, 0.9, 0), (10, 20, 40, 60, 0.9, 1), (10, 20, 40, 62, 0.9, 0)],
    ids=["x and y exchanged", "another class", "two pixels off"],
)
def test_another_instance_is_none_of_these(other):
    found = difference(instances(A), instances(other))
    assert (found.missing, found.extra, found.borderline) == (1, 1, 0)


def test_only_what_lies_on_a_threshold_is_borderline():
    on_confidence = (50, 10, 90, 30, CONFIDENCE + 1e-5, 1)
    found = difference(instances(A, on_confidence), instances(A))
    assert (found.missing, found.extra, found.borderline) == (0, 0, 1)
    found = difference(instances(A, B), instances(A))
    assert (found.missing, found.extra, found.borderline) == (1, 0, 0)
    # Two boxes of 40 x 40 pixels that share 24.83 x 40 have an overlap of 0.45.
    one, other = (0, 0, 40, 40, 0.9, 0), (15.17, 0, 55.17, 40, 0.8, 0)
    found = difference(instances(one, other), instances(one))
    assert (found.missing, found.extra, found.borderline) == (0, 0, 1)
    found = difference(instances(one, (25, 0, 65, 40, 0.8, 0)), instances(one))
    assert (found.missing, found.extra, found.borderline) == (1, 0, 0)


def test_what_ultralytics_leaves_out_may_be_served_or_not():
    empty = (10, 20, 10, 60, 0.9, 0)
    found = difference(instances(empty, B), instances(B))
    assert (found.reference, found.missing, found.extra, found.served_empty) == (1, 0, 0, 0)
    found = difference(instances(empty, B), instances(empty, B))
    assert (found.reference, found.missing, found.extra, found.served_empty) == (1, 0, 0, 1)


def test_empty_masks_are_alike():
    empty = np.zeros((4, 4), bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, ~empty) == 0


def test_the_page_lists_every_case():
    """``docs/exports.md`` holds the table that ``make test-exports`` prints."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "exports.md").read_text()
    rows = [list(row.values())[:5] for row in rows_of(page)]
    for case in CASES:
        outcome = "refused" if case.refused else "not exported" if case.not_exported else "served"
        size = "{}x{}".format(*case.input_size)
        assert [case.label, str(case.classes), size, case.title, outcome] in rows
    assert len(rows) == len(CASES)
