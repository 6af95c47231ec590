"""Scenes: the same seed gives the same pixels, and the masks are what geometry says."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rich.console import Console

from base.progress import Steps
from scenes import (
    CALIBRATION_SEEDS,
    SPLITS,
    VERIFICATION_SEEDS,
    CardSource,
    Scene,
    SceneError,
    SceneOptions,
    draw_showcase,
    generate_scene,
    generate_scenes,
    write_dataset,
)
from scenes import photographs as photograph_module
from scenes.card import CORNER_RADIUS_MM, LONG_SIDE_MM, SHORT_SIDE_MM
from scenes.perspective import Camera, turn_x, turn_z
from scenes.photographs import CardOutline, Photograph, cut_cards
from scenes.stage import Shadow, Stage
from scenes.surface import FlatObject, footprint, outline, project

SMALL = SceneOptions(min_side_px=160, max_side_px=320)


@pytest.fixture(scope="module")
def cards() -> CardSource:
    return CardSource(designs=4)


def plain_card(color: int = 200) -> FlatObject:
    texture = np.full((54, 86, 3), color, np.uint8)
    return FlatObject(texture, LONG_SIDE_MM, SHORT_SIDE_MM, CORNER_RADIUS_MM, "plain")


def tilted(
    x_px: float = 0.0, y_px: float = 0.0, turn: float = 0.3, tilt: float = 0.6, card_px: float = 120.0
) -> np.ndarray:
    intrinsics = np.array([[400.0, 0, 160], [0, 400, 120], [0, 0, 1]])
    camera = Camera.at(intrinsics, turn_z(0.4) @ turn_x(-tilt) @ turn_z(-0.4), card_px)
    center = camera.point_on_table(160 + x_px, 120 + y_px)
    assert center is not None
    return camera.homography(center, turn)


def flat_at(x_px: float, y_px: float) -> np.ndarray:
    """A card of 1 px per mm, parallel to the image."""
    return np.array([[1.0, 0, x_px], [0, 1, y_px], [0, 0, 1]])


def empty_stage(min_visible: float = 0.5) -> Stage:
    return Stage(np.full((240, 320, 3), 90, np.uint8), Shadow(0.5, 0.5, 1.0, 0.3), min_visible)


def pixels_in_polygon(polygon: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """By crossing number: which pixel centers lie inside, and how far each is from the nearest edge."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = np.zeros((height, width), bool)
    distance = np.full((height, width), np.inf)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        edge = np.array([x2 - x1, y2 - y1])
        share = np.clip(((x - x1) * edge[0] + (y - y1) * edge[1]) / max(edge @ edge, 1e-12), 0, 1)
        distance = np.minimum(distance, np.hypot(x - x1 - share * edge[0], y - y1 - share * edge[1]))
    return inside, distance


# Determinism


def test_the_same_seed_gives_the_same_scene(cards: CardSource) -> None:
    np.random.seed(1)
    first = generate_scene(7, cards=cards, options=SMALL)
    np.random.seed(2)
    cv2.setRNGSeed(5)
    for _ in generate_scenes(2, 3, cards=cards, options=SMALL):
        pass
    second = generate_scene(7, cards=CardSource(designs=4), options=SMALL)
    assert first.jpeg == second.jpeg
    for field in ("image", "masks", "boxes", "class_ids", "homographies"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_other_seeds_give_other_scenes(cards: CardSource) -> None:
    contents = {scene.jpeg for scene in generate_scenes(12, 0, cards=cards, options=SMALL)}
    assert len(contents) == 12


def test_the_global_random_state_is_left_alone(cards: CardSource) -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    generate_scene(1, cards=cards, options=SMALL)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


# Seeds


def test_no_seed_is_in_both_splits() -> None:
    assert max(CALIBRATION_SEEDS) < min(VERIFICATION_SEEDS)
    assert not set(CALIBRATION_SEEDS) & set(VERIFICATION_SEEDS)
    assert len(CALIBRATION_SEEDS) > 100_000 < len(VERIFICATION_SEEDS)


def test_seeds_past_the_end_of_a_split_are_refused_at_once(cards: CardSource) -> None:
    with pytest.raises(SceneError, match="calibration seeds end at"):
        generate_scenes(2, CALIBRATION_SEEDS.stop - 1, cards=cards)
    with pytest.raises(SceneError, match="verification seeds end at"):
        generate_scenes(len(VERIFICATION_SEEDS) + 1, VERIFICATION_SEEDS.start, cards=cards)
    assert len(list(generate_scenes(1, CALIBRATION_SEEDS.stop - 1, cards=cards, options=SMALL))) == 1


@pytest.mark.parametrize("seed", [-1, VERIFICATION_SEEDS.stop])
def test_a_seed_of_no_split_is_refused(seed: int, cards: CardSource) -> None:
    with pytest.raises(SceneError, match=f"seed {seed} belongs to no split"):
        generate_scene(seed, cards=cards)


def test_the_splits_share_no_drawn_card(cards: CardSource) -> None:
    names = {
        split: {
            name for scene in generate_scenes(10, seeds.start, cards=cards, options=SMALL) for name in scene.card_names
        }
        for split, seeds in SPLITS.items()
    }
    assert names["calibration"] and names["verification"]
    assert not names["calibration"] & names["verification"]


# Masks


@pytest.mark.parametrize(("turn", "tilt"), [(0.0, 0.0), (0.3, 0.6), (-1.9, 0.9), (2.5, 0.3)])
def test_a_mask_is_the_projected_outline_to_the_pixel(turn: float, tilt: float) -> None:
    card, homography = plain_card(), tilted(turn=turn, tilt=tilt)
    place = footprint(card, homography, 240, 320)
    mask = np.zeros((240, 320), bool)
    mask[place.window.slices] = place.mask
    polygon = project(outline(card, points_per_corner=128), homography)
    left, top = np.floor(polygon.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(polygon.max(axis=0)).astype(int) + 1
    expected = np.zeros((240, 320), bool)
    inside, distance = pixels_in_polygon(polygon - (left, top), bottom - top, right - left)
    expected[top:bottom, left:right] = inside
    assert expected.sum() > 2000
    # The polygon's corners are chords of arcs and the mask is single precision: 1e-3 px may fall to either side.
    expected[top:bottom, left:right][distance <= 1e-3] = mask[top:bottom, left:right][distance <= 1e-3]
    np.testing.assert_array_equal(mask, expected)
    assert place.area_px == pytest.approx(expected.sum(), rel=0.01)


def test_rounded_corners_are_not_in_the_mask() -> None:
    place = footprint(plain_card(), flat_at(100, 100), 240, 320)
    mask = np.zeros((240, 320), bool)
    mask[place.window.slices] = place.mask
    # Pixel centers from 57.5 to 142.5 and 73.5 to 126.5 lie within 85.60 x 53.98 around (100, 100).
    assert not mask[73, 57] and mask[73, 61] and mask[77, 57] and not mask[72].any() and not mask[:, 143].any()
    missing = 86 * 54 - mask.sum()
    assert missing == pytest.approx((4 - np.pi) * CORNER_RADIUS_MM**2, abs=4)


def test_pixels_and_mask_lie_on_each_other() -> None:
    stage = empty_stage()
    stage.shadow = Shadow(0, 0, 1, 0)
    assert stage.lay_card(plain_card(250), tilted(), may_overlap=False, min_inside=0.99)
    painted = stage.image[..., 0] > (250 + 90) / 2
    assert np.count_nonzero(painted != stage.cards[0].mask) <= 2  # half covered pixels may round to either side


def test_the_picture_on_a_card_is_where_the_homography_says() -> None:
    texture = np.zeros((540, 856, 3), np.uint8)
    texture[100:140, 200:240] = 255  # its middle: x = 22.0 mm, y = 12.0 mm from the top left corner
    stage = empty_stage()
    homography = tilted(card_px=240)
    card = FlatObject(texture, LONG_SIDE_MM, SHORT_SIDE_MM, CORNER_RADIUS_MM)
    assert stage.lay_card(card, homography, may_overlap=False, min_inside=0.9)
    rows, columns = np.nonzero(stage.cards[0].mask & (stage.image[..., 0] > 127))
    middle_mm = np.array([[22.0 - LONG_SIDE_MM / 2, 12.0 - SHORT_SIDE_MM / 2]])
    expected = project(middle_mm, homography)[0]
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(tuple(expected), abs=0.35)


def test_what_lies_on_top_is_taken_from_the_mask_below() -> None:
    stage = empty_stage()
    assert stage.lay_card(plain_card(), flat_at(120, 120), may_overlap=True, min_inside=0.99)
    below = stage.cards[0].mask.copy()
    assert stage.lay_card(plain_card(), flat_at(170, 120), may_overlap=True, min_inside=0.99)
    first, second = stage.cards
    assert not (first.mask & second.mask).any()
    np.testing.assert_array_equal(first.mask, below & ~second.mask)
    thing = FlatObject(np.zeros((8, 8, 3), np.uint8), 20, 20, 0)
    before = second.mask.copy()
    assert stage.lay_thing(thing, flat_at(165, 120))
    y, x = np.indices(before.shape)
    under_thing = (x >= 155) & (x < 175) & (y >= 110) & (y < 130)
    np.testing.assert_array_equal(second.mask, before & ~under_thing)


def test_nothing_hides_more_of_a_card_than_allowed() -> None:
    stage = empty_stage(min_visible=0.6)
    assert stage.lay_card(plain_card(), flat_at(120, 120), may_overlap=True, min_inside=0.99)
    picture, mask = stage.image.copy(), stage.cards[0].mask.copy()
    assert not stage.lay_card(plain_card(), flat_at(130, 120), may_overlap=True, min_inside=0.99)
    assert not stage.lay_card(plain_card(), flat_at(195, 120), may_overlap=False, min_inside=0.99)
    assert not stage.lay_card(plain_card(), flat_at(318, 120), may_overlap=True, min_inside=0.5)
    assert not stage.lay_thing(plain_card(), flat_at(130, 120))
    np.testing.assert_array_equal(stage.image, picture)
    np.testing.assert_array_equal(stage.cards[0].mask, mask)
    assert stage.lay_card(plain_card(), flat_at(195, 120), may_overlap=True, min_inside=0.99)


@pytest.fixture(scope="module")
def many(cards: CardSource) -> list[Scene]:
    return list(generate_scenes(30, VERIFICATION_SEEDS.start, cards=cards, options=SMALL))


def test_scenes_keep_their_promises(many: list[Scene]) -> None:
    covered = 0
    for scene in many:
        height, width = scene.image.shape[:2]
        count = len(scene.boxes)
        assert scene.masks.shape == (count, height, width) and scene.masks.dtype == bool
        assert scene.boxes.shape == (count, 4) and scene.boxes.dtype == np.float32
        assert scene.class_ids.tolist() == [0] * count and len(scene.card_names) == count
        assert SMALL.min_side_px <= min(height, width) and max(height, width) <= SMALL.max_side_px
        assert scene.masks.sum(axis=0).max(initial=0) <= 1, "two cards claim one pixel"
        for mask, box, homography in zip(scene.masks, scene.boxes, scene.homographies, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            whole = footprint(plain_card(), homography, height, width)
            inside = np.zeros_like(mask)
            inside[whole.window.slices] = whole.mask
            assert not (mask & ~inside).any(), "a mask reaches past its card"
            assert mask.sum() >= SMALL.min_visible * whole.area_px
            covered += mask.sum() < inside.sum()
    assert covered >= 5, "hardly any card is covered by anything"


def test_scenes_hold_from_no_card_to_several(many: list[Scene]) -> None:
    counts = {len(scene.boxes) for scene in many}
    assert 0 in counts and 1 in counts and max(counts) >= 3
    empty = next(scene for scene in many if len(scene.boxes) == 0)
    assert empty.masks.shape[0] == 0 and empty.boxes.shape == (0, 4) and empty.image.std() > 1


def test_the_image_is_what_the_jpeg_decodes_to(many: list[Scene]) -> None:
    for scene in many[:5]:
        decoded = cv2.imdecode(np.frombuffer(scene.jpeg, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(decoded[..., ::-1], scene.image)


def test_blur_and_light_do_not_move_masks(cards: CardSource) -> None:
    plain = generate_scene(11, cards=cards, options=dataclasses.replace(SMALL, strength=0))
    rough = generate_scene(11, cards=cards, options=dataclasses.replace(SMALL, strength=1.5))
    assert len(plain.masks) > 0
    np.testing.assert_array_equal(plain.masks, rough.masks)
    assert np.abs(plain.image.astype(int) - rough.image).mean() > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("card_weights", (0.0, 0.0)),
        ("min_visible", 0.0),
        ("max_tilt_degrees", 80.0),
        ("max_side_px", 100),
        ("strength", -1),
    ],
)
def test_a_bad_option_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SceneError, match=name):
        SceneOptions(**{name: value})  # type: ignore[arg-type]


def test_the_showcase_shows_five_drawn_cards() -> None:
    scene = draw_showcase(0)
    assert scene.image.shape == (720, 1080, 3)
    assert len(scene.masks) == 5 and all(name.startswith("drawn ") for name in scene.card_names)
    assert draw_showcase(0).jpeg == scene.jpeg != draw_showcase(1).jpeg


def test_backgrounds_of_ones_own_are_used(tmp_path: Path, cards: CardSource) -> None:
    path = tmp_path / "table.png"
    cv2.imwrite(str(path), np.full((300, 400, 3), (0, 0, 255), np.uint8))  # red, as OpenCV writes BGR
    options = dataclasses.replace(SMALL, backgrounds=(path,), card_weights=(1.0,), max_clutter=0, strength=0)
    colors = [scene.image.mean(axis=(0, 1)) for scene in generate_scenes(8, 0, cards=cards, options=options)]
    red = sum(color[0] > 240 and color[1] < 15 for color in colors)
    assert 1 <= red < 8
    broken = dataclasses.replace(options, backgrounds=(tmp_path / "none.png",))
    with pytest.raises(SceneError, match=r"none\.png"):
        list(generate_scenes(8, 0, cards=cards, options=broken))


# Photographs


def photograph(path: Path) -> np.ndarray:
    """A picture of a card, left half red and right half blue, tilted; returns the card's corners."""
    homography = tilted()
    x, y = LONG_SIDE_MM / 2, SHORT_SIDE_MM / 2
    corners = project(np.array([[-x, -y], [x, -y], [x, y], [-x, y]]), homography)
    texture = np.zeros((54, 86, 3), np.uint8)
    texture[:, :43, 0] = texture[:, 43:, 2] = 220
    stage = empty_stage()
    assert stage.lay_card(FlatObject(texture, 2 * x, 2 * y, 0.0), homography, may_overlap=False, min_inside=0.99)
    cv2.imwrite(str(path), stage.image[..., ::-1])
    return corners


def test_a_card_is_cut_out_of_its_photograph_and_flattened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made.png"
    corners = photograph(path)
    known = Photograph(_sha256(path), (CardOutline(tuple(map(tuple, corners.tolist()))),))  # type: ignore[arg-type]
    monkeypatch.setitem(photograph_module.PHOTOGRAPHS, "made.png", known)
    (card,) = cut_cards([path])
    assert card.name == "made.png#0" and card.texture.shape == (540, 856, 3)
    assert (card.width_mm, card.height_mm) == (LONG_SIDE_MM, SHORT_SIDE_MM)
    assert (card.texture[20:-20, 20:400, 0] > 180).all() and (card.texture[20:-20, 20:400, 2] < 40).all()
    assert (card.texture[20:-20, 456:-20, 2] > 180).all() and (card.texture[20:-20, 456:-20, 0] < 40).all()
    source = CardSource.from_photographs([path])
    assert source.digest() != CardSource().digest()
    names = [name for scene in generate_scenes(15, 0, cards=source, options=SMALL) for name in scene.card_names]
    assert "made.png#0" in names and any(name.startswith("drawn") for name in names)


def test_a_photograph_with_other_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "us_card.png"
    photograph(path)
    with pytest.raises(SceneError, match=rf"us_card\.png: SHA-256 {_sha256(path)}, expected a9411285"):
        CardSource.from_photographs([path])


def test_an_unknown_or_missing_photograph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no card corners are known"):
        cut_cards([tmp_path / "holiday.png"])
    with pytest.raises(SceneError, match="No such file"):
        cut_cards([tmp_path / "us_card.png"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Sets on disk


def quiet() -> Steps:
    return Steps(Console(quiet=True))


def test_a_set_loads_in_pycocotools_and_holds_the_scenes(tmp_path: Path, cards: CardSource) -> None:
    written = write_dataset(tmp_path, "verification", 8, cards=cards, options=SMALL, steps=quiet())
    assert written.is_new and written.count == 8
    coco = COCO(str(written.annotations))
    assert sorted(coco.getImgIds()) == list(VERIFICATION_SEEDS[:8])
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["identity card"]
    for scene in generate_scenes(8, VERIFICATION_SEEDS.start, cards=cards, options=SMALL):
        (entry,) = coco.loadImgs([scene.seed])
        assert (written.images / entry["file_name"]).read_bytes() == scene.jpeg
        assert (entry["height"], entry["width"]) == scene.image.shape[:2]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[scene.seed]))
        assert len(annotations) == len(scene.masks)
        for annotation, mask in zip(annotations, scene.masks, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum() and annotation["id"] >= 1
            encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
            assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()


def test_the_same_set_is_not_written_twice(tmp_path: Path, cards: CardSource) -> None:
    first = write_dataset(tmp_path, "calibration", 3, cards=cards, options=SMALL, steps=quiet())
    again = write_dataset(tmp_path, "calibration", 3, cards=CardSource(designs=4), options=SMALL, steps=quiet())
    assert first.is_new and not again.is_new
    assert again.sha256 == first.sha256
    elsewhere = write_dataset(tmp_path / "other", "calibration", 3, cards=cards, options=SMALL, steps=quiet())
    assert elsewhere.is_new and elsewhere.sha256 == first.sha256


def test_another_or_damaged_set_is_replaced_whole(tmp_path: Path, cards: CardSource) -> None:
    first = write_dataset(tmp_path, "calibration", 3, cards=cards, options=SMALL, steps=quiet())
    smaller = write_dataset(tmp_path, "calibration", 2, cards=cards, options=SMALL, steps=quiet())
    assert smaller.is_new and smaller.sha256 != first.sha256
    assert len(list(smaller.images.iterdir())) == 2
    next(smaller.images.iterdir()).write_bytes(b"damaged")
    mended = write_dataset(tmp_path, "calibration", 2, cards=cards, options=SMALL, steps=quiet())
    assert mended.is_new and mended.sha256 == smaller.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"], "something was left behind"


def test_a_failed_set_leaves_what_was_there(tmp_path: Path, cards: CardSource, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_dataset(tmp_path, "calibration", 2, cards=cards, options=SMALL, steps=quiet())

    def fail(*_: object, **__: object) -> Scene:
        raise KeyboardInterrupt

    monkeypatch.setattr("scenes.dataset.generate_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, "calibration", 3, cards=cards, options=SMALL, steps=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"]
    kept = write_dataset(tmp_path, "calibration", 2, cards=cards, options=SMALL, steps=quiet())
    assert not kept.is_new and kept.sha256 == first.sha256


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, cards: CardSource) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "notes.txt").write_text("mine")
    with pytest.raises(SceneError, match="no set of scenes"):
        write_dataset(tmp_path, "calibration", 1, cards=cards, options=SMALL, steps=quiet())
    assert (tmp_path / "calibration" / "notes.txt").read_text() == "mine"


def test_a_bad_order_is_refused(tmp_path: Path, cards: CardSource) -> None:
    with pytest.raises(SceneError, match="split 'training'"):
        write_dataset(tmp_path, "training", 1, cards=cards)
    with pytest.raises(SceneError, match="0 scenes"):
        write_dataset(tmp_path, "calibration", 0, cards=cards)
    with pytest.raises(SceneError, match="first is 1000000"):
        write_dataset(tmp_path, "calibration", 1, cards=cards, first=len(CALIBRATION_SEEDS))
    with pytest.raises(SceneError, match="calibration seeds end at"):
        write_dataset(tmp_path, "calibration", 2, cards=cards, first=len(CALIBRATION_SEEDS) - 1)
    assert not list(tmp_path.iterdir())
