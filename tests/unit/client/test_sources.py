"""From paths to images with names of their own."""

import pytest

from client.photos import check_overlays, overlay_path
from client.sources import Source, SourceError, find_images


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


def test_folders_of_one_name_are_told_apart(tree):
    assert names(find_images([tree / "p" / "same", tree / "q" / "same"])) == ["p/same/x.jpg", "q/same/x.jpg"]


def test_files_of_one_name_are_told_apart(tree):
    assert names(find_images([tree / "one" / "x.jpg"])) == ["x.jpg"]
    assert names(find_images([tree / "one" / "x.jpg", tree / "two" / "x.jpg"])) == ["one/x.jpg", "two/x.jpg"]


def test_a_file_reached_twice_is_taken_once(tree):
    assert names(find_images([tree / "two", tree / "two" / "x.jpg"])) == ["two/x.jpg"]


def test_the_current_folder_has_no_name(tree, monkeypatch):
    from pathlib import Path

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
