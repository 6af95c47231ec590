from __future__ import annotations

import cv2
import numpy as np
import pytest

from builder.datasets import CalibrationSet


def images(folder, flat, others):
    rng = np.random.default_rng(0)
    for index in range(flat):  # a covered lens is dark, and noisy
        noise = rng.integers(0, 6, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"flat{index}.png"), noise)
    for index in range(others):
        cv2.imwrite(str(folder / f"other{index}.png"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    return (folder,)


@pytest.mark.parametrize(("flat", "others"), [(3, 0), (3, 2)])
def test_calibration_images_that_show_nothing_are_named(tmp_path, flat, others):
    warning = CalibrationSet.of(images(tmp_path, flat, others)).warning
    assert f"{flat + others} calibration images; 500 or more" in warning
    assert f"3 of {flat + others} calibration images show nothing but one color" in warning
    assert "flat0.png" in warning


@pytest.mark.parametrize(("flat", "others"), [(0, 3), (1, 3)])
def test_a_few_blank_images_among_others_are_no_fault(tmp_path, flat, others):
    assert CalibrationSet.of(images(tmp_path, flat, others), "").warning is None
