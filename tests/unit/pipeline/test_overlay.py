"""Drawn shapes: where the color goes, and where it does not."""

import numpy as np
import pytest

from pipeline.fonts import text_mask
from pipeline.overlay import draw_overlay, palette
from pipeline.result import Segmentation
from tests.unit.client.results import disc, empty_segmentation, segmentation_of


def gray(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def test_mask_is_tinted_and_the_rest_is_not():
    mask = disc(300, 400, 200, 180, 60)
    image = gray(300, 400)
    overlay = draw_overlay(image, segmentation_of([mask]), opacity=0.5)
    expected = np.round(np.array([100, 100, 100]) * 0.5 + np.array(palette(0)) * 0.5)
    assert np.abs(overlay[180, 200] - expected).max() <= 1
    box = np.zeros_like(mask)
    box[90:250, 130:270] = True  # box, contour and label lie within
    assert np.array_equal(overlay[~box], image[~box])
    assert (image == 100).all()


def test_box_is_drawn_where_it_lies():
    overlay = draw_overlay(gray(300, 400), segmentation_of([disc(300, 400, 200, 180, 60)]), opacity=0.0)
    changed = (overlay != 100).any(axis=2)
    assert changed[180, 140]
    assert changed[180, 260] or changed[180, 261]
    assert not changed[180, 165]


def test_instances_differ_and_classes_keep_their_color():
    masks = [disc(200, 400, 100, 120, 40), disc(200, 400, 300, 120, 40)]
    result = segmentation_of(masks, class_ids=[2, 2])
    by_instance = draw_overlay(gray(200, 400), result)
    assert not np.array_equal(by_instance[120, 100], by_instance[120, 300])
    by_class = draw_overlay(gray(200, 400), result, color_by="class")
    assert np.array_equal(by_class[120, 100], by_class[120, 300])


def test_colors_of_neighboring_indices_are_apart():
    for index in range(12):
        others = [palette(index + step) for step in (1, 2, 3)]
        assert all(np.abs(np.subtract(palette(index), other)).max() > 60 for other in others)


def test_label_is_drawn_and_carries_the_name():
    result = segmentation_of([disc(300, 400, 200, 180, 60)])
    plain = draw_overlay(gray(300, 400), result)
    named = draw_overlay(gray(300, 400), result, class_names={0: "a rather long name"})
    above = np.s_[90:118, 140:400]
    assert (plain[above] != 100).any()
    assert (named[above] != 100).sum() > (plain[above] != 100).sum()


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [(200, 300, (150, 0, 40)), (200, 300, (299, 199, 30)), (12, 12, (6, 6, 6)), (1, 1, (0, 0, 1))],
)
def test_shapes_at_the_edge_and_tiny_images(height, width, shape):
    result = segmentation_of([disc(height, width, *shape)])
    overlay = draw_overlay(gray(height, width), result, class_names={0: "name"})
    assert overlay.shape == (height, width, 3)
    assert (overlay != 100).any()


def test_without_masks_boxes_remain():
    found = segmentation_of([disc(300, 400, 200, 180, 60)])
    bare = Segmentation(found.boxes, found.scores, found.class_ids, (b"",), "none", found.image_size)
    overlay = draw_overlay(gray(300, 400), bare)
    assert np.array_equal(overlay[180, 200], [100, 100, 100])
    assert (overlay != 100).any()


def test_nothing_found_leaves_the_image():
    assert np.array_equal(draw_overlay(gray(20, 30), empty_segmentation(20, 30)), gray(20, 30))


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="30x20 pixels; the result is for 20x30"):
        draw_overlay(gray(30, 20), empty_segmentation(20, 30))


def test_names_in_other_scripts_are_drawn_or_numbered(monkeypatch):
    found = segmentation_of([disc(300, 400, 200, 180, 60)])
    plain = draw_overlay(gray(300, 400), found, class_names={0: "0"})
    pictures = {name: draw_overlay(gray(300, 400), found, class_names={0: name}) for name in ("Größe", "Карта")}
    letters = {name: picture[90:120].tobytes() for name, picture in pictures.items()}
    if text_mask("Größe", 20) is not None:  # a font is here
        assert len({*letters.values(), plain[90:120].tobytes()}) == 3
    monkeypatch.setattr("pipeline.overlay.text_mask", lambda *_: None)
    assert np.array_equal(draw_overlay(gray(300, 400), found, class_names={0: "カード"}), plain)
