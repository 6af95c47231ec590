import shutil

import pytest

from repository.store import SHIPPED_REPOSITORY, read_config
from serving.repository_view import make_view


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(SHIPPED_REPOSITORY, tmp_path / "repository", ignore=shutil.ignore_patterns("[0-9]*", ".lock"))
    (tmp_path / "repository/preprocess/1").mkdir()
    (tmp_path / "repository/preprocess/1/model.py").write_text("# the model\n")
    return tmp_path / "repository"


def test_only_the_counts_differ(repository, tmp_path):
    view = make_view(repository, tmp_path / "view", {"preprocess": 7})
    mine, theirs = read_config(view / "preprocess/config.pbtxt"), read_config(repository / "preprocess/config.pbtxt")
    assert mine.instance_group[0].count == 7
    mine.instance_group[0].count = theirs.instance_group[0].count
    assert mine == theirs
    assert (view / "preprocess/1/model.py").read_text() == "# the model\n"
    assert {entry.name for entry in view.iterdir()} == {entry.name for entry in repository.iterdir() if entry.is_dir()}


def test_a_promotion_in_the_repository_shows_in_the_view(repository, tmp_path):
    view = make_view(repository, tmp_path / "view", {"preprocess": 2})
    config = repository / "network_int8/configs/cpu.pbtxt"
    config.write_text(config.read_text() + "# changed\n")
    assert (view / "network_int8/configs/cpu.pbtxt").read_text().endswith("# changed\n")


def test_the_repository_is_not_written_to(repository, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    make_view(repository, tmp_path / "view", {"preprocess": 3, "postprocess": 4})
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_a_parameter_differs_and_nothing_else(repository, tmp_path):
    view = make_view(repository, tmp_path / "view", {}, {"admission": {"max_latency_ms": "5"}})
    mine, theirs = read_config(view / "admission/config.pbtxt"), read_config(repository / "admission/config.pbtxt")
    assert mine.parameters["max_latency_ms"].string_value == "5"
    mine.parameters["max_latency_ms"].string_value = theirs.parameters["max_latency_ms"].string_value
    assert mine == theirs
