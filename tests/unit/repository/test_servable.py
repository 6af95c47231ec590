"""Which models of a repository can be served."""

from __future__ import annotations

import pytest

from repository.errors import RepositoryError
from repository.servable import models_to_load
from repository.store import ModelRepository
from tests.unit.serving.repositories import tiny_repository


def test_a_version_that_is_named_and_there_can_be_served(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r", ["fp32", "int8"]))
    assert repository.servable_precisions("cpu") == ("fp32", "int8")
    assert models_to_load(repository, "cpu") == [
        "admission",
        "preprocess",
        "postprocess",
        "network_fp32",
        "network_int8",
        "segment_fp32",
        "segment_int8",
    ]


def test_only_what_is_asked_for_is_loaded(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r", ["fp32", "int8"]))
    expected = ["admission", "preprocess", "postprocess", "network_int8", "segment_int8"]
    assert models_to_load(repository, "cpu", ["int8"]) == expected


def test_a_repository_that_lacks_a_step_is_refused_by_its_name(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r"))
    (repository.path / "admission" / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"no admission/config\.pbtxt.*--repository"):
        ModelRepository.existing(repository.path)


@pytest.mark.parametrize("missing", ["model.onnx", "model.py"])
def test_a_version_without_its_files_cannot_be_served(tmp_path, missing):
    repository = ModelRepository(tiny_repository(tmp_path / "r"))
    (repository.path / "network_int8" / "1" / missing).unlink()
    assert repository.servable_precisions("cpu") == ()


def test_a_version_that_is_not_named_cannot_be_served(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r"))
    (repository.path / "network_int8" / "1").rename(repository.path / "network_int8" / "2")
    assert repository.servable_precisions("cpu") == ()


def test_the_tensorrt_profile_needs_a_plan(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r"))
    assert repository.servable_precisions("tensorrt") == ()
    (repository.path / "network_int8" / "1" / "model.plan").touch()
    assert repository.servable_precisions("tensorrt") == ("int8",)


def test_nothing_to_serve_is_reported_with_the_command_that_builds(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r", []))
    with pytest.raises(RepositoryError, match=r"no version .*profile cpu; .*python -m builder build --profile cpu"):
        models_to_load(repository, "cpu")


def test_a_missing_precision_that_was_asked_for_is_named(tmp_path):
    repository = ModelRepository(tiny_repository(tmp_path / "r", ["fp32"]))
    with pytest.raises(RepositoryError, match=r"network_int8 .*--precisions fp32,fp16,int8"):
        models_to_load(repository, "cpu", ["fp32", "int8"])


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_no_repository_is_refused(tmp_path, exists):
    folder = tmp_path / "r"
    if exists:
        folder.mkdir()
    with pytest.raises(RepositoryError, match=r"not a model repository.*--repository"):
        ModelRepository.existing(folder)
