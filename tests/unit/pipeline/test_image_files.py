"""From paths to images with unique names."""

import os
from collections import Counter
from pathlib import Path

import pytest

from client.photos import check_overlays, overlay_path
from pipeline.image_files import Source, SourceError, find_images, listed


@pytest.fixture
def tree(tmp_path):
    for name in (
        "one/x.jpg",
        "one/deep/y.PNG",
        "one/notes.txt",
        "two/x.jpg",
        "p/same/x.jpg",
        "q/same/x.jpg",
        "none/a.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def names(sources):
    return [source.name for source in sources]


def test_folders_are_searched_by_suffix_and_keep_their_names(tree):
    assert names(find_images([tree / "one", tree / "two"])) == ["one/x.jpg", "one/deep/y.PNG", "two/x.jpg"]


def test_folders_of_one_name_get_different_names(tree):
    assert names(find_images([tree / "p" / "same", tree / "q" / "same"])) == ["p/same/x.jpg", "q/same/x.jpg"]


def test_files_of_one_name_get_different_names(tree):
    assert names(find_images([tree / "one" / "x.jpg"])) == ["x.jpg"]
    assert names(find_images([tree / "one" / "x.jpg", tree / "two" / "x.jpg"])) == ["one/x.jpg", "two/x.jpg"]


def test_a_file_reached_twice_is_taken_once(tree):
    assert names(find_images([tree / "two", tree / "two" / "x.jpg"])) == ["two/x.jpg"]


def test_the_current_folder_has_no_name(tree, monkeypatch):
    monkeypatch.chdir(tree / "one" / "deep")
    assert names(find_images([Path()])) == ["y.PNG"]
    assert names(find_images([Path("..")])) == ["x.jpg", "deep/y.PNG"]


def test_overlays_of_an_earlier_run_are_no_input(tree):
    assert names(find_images([tree / "one"], skip=tree / "one" / "deep")) == ["one/x.jpg"]


def test_a_file_named_is_taken_whatever_its_suffix(tree):
    assert names(find_images([tree / "one" / "notes.txt"])) == ["notes.txt"]


@pytest.mark.parametrize(("path", "message"), [("gone.jpg", "no such file"), ("none", "no image in this folder")])
def test_nothing_to_segment(tree, path, message):
    with pytest.raises(SourceError, match=message):
        find_images([tree / path])


def test_overlay_names(tmp_path):
    assert overlay_path(Source(tmp_path / "x.webp", "one/x.webp"), tmp_path / "out") == tmp_path / "out/one/x.webp"
    assert overlay_path(Source(tmp_path / "x.raw", "x.raw"), tmp_path / "out") == tmp_path / "out/x.raw.png"


def test_overlays_never_overwrite_what_was_given(tree):
    sources = find_images([tree / "one" / "x.jpg"])
    check_overlays(sources, tree / "out")
    with pytest.raises(SourceError, match="would overwrite"):
        check_overlays(sources, tree / "one")


def test_every_suffix_of_an_image_is_read_whatever_its_case(tmp_path):
    given = ["a.jfif", "b.JPE", "c.dib", "d.heic", "e.avif", "f.TIF", "g.jpeg"]
    for name in given:
        (tmp_path / name).write_bytes(b"")
    assert names(find_images([tmp_path])) == [f"{tmp_path.name}/{name}" for name in given]


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    for name in ("x.jpg", "._x.jpg", "a.txt", "b.TXT", "README", "clip.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    left_out = Counter()
    assert names(find_images([tmp_path], left_out=left_out)) == [f"{tmp_path.name}/x.jpg"]
    assert left_out == {
        "macOS ._ file": 1,
        ".txt": 2,
        "without suffix": 1,
        ".mp4": 1,
        "broken link": 1,
        "no regular file": 1,
    }
    assert listed(left_out).startswith("1 .mp4, 2 .txt, ")


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.jpg").write_bytes(b"")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "near.jpg").write_bytes(b"")
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "again").symlink_to(tree / "deep")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "twice").symlink_to(tmp_path / "elsewhere")
    assert names(find_images([tree])) == ["tree/deep/near.jpg", "tree/linked/far.jpg"]
    assert names(find_images([tree / "linked"])) == ["linked/far.jpg"]


def test_the_builder_finds_what_the_client_finds(tmp_path):
    from builder.datasets import find_images as found_by_builder

    for name in ("b/x.jfif", "a/._y.jpg", "a/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert found_by_builder([tmp_path]) == (tmp_path / "a" / "y.jpg", tmp_path / "b" / "x.jfif")
