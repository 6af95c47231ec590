"""Addresses of storage are refused as paths, and nothing is made of them; a repository behind a link works."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.paths import address_problem
from builder.__main__ import main as builder
from builder.settings import SettingsError, load_settings
from demo.__main__ import main as demo
from load.__main__ import main as load
from repository.errors import RepositoryError
from repository.store import ModelRepository
from serving.__main__ import main as serving
from tests.versions import add_version, promote_one

ADDRESSES = ["s3://bucket/models", "gs://bucket/models", "as://account/models", "https://host/models", "file:///models"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_no_path(address):
    for given in (address, Path(address)):
        assert "is an address" in address_problem(given)


@pytest.mark.parametrize(
    "path", ["models", "/models", "./s3/models", "a:b", "C:/models", "x//y", "year:2026", "~/models"]
)
def test_a_path_is_none(path):
    assert address_problem(path) is None


def test_a_folder_that_is_called_like_an_address_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:/models").mkdir(parents=True)
    assert address_problem("s3://models") is None


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (builder, ("build", "--repository")),
        (builder, ("build", "--onnx")),
        (builder, ("build", "--images")),
        (builder, ("build", "--verify-images")),
        (builder, ("build", "--annotations")),
        (builder, ("build", "--config")),
        (builder, ("sensitivity", "--out")),
        (builder, ("add-plan", "network_int8/1", "--repository")),
        (builder, ("list", "--repository")),
        (builder, ("verify", "--repository")),
        (builder, ("promote", "network_int8/1", "--repository")),
        (serving, ("run", "--repository")),
        (serving, ("run", "--admin-secret-file")),
        (serving, ("preflight", "--repository")),
        (demo, ("--repository",)),
        (demo, ("--out",)),
        (serving, ("unpack",)),
        (load, ("compare", "--repository")),
    ],
)
@pytest.mark.parametrize("address", ["s3://bucket/models", "gs://bucket/models"])
def test_every_command_refuses_it_and_makes_no_folder(tmp_path, monkeypatch, capsys, program, arguments, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        program([*arguments, address])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert f"{address} is an address" in text
    assert "mount it" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry", ["repository: {}", "onnx: {}", "calibration: {{images: [{}]}}", "plan: {{timing_cache: {}}}"]
)
def test_a_settings_file_with_one_is_refused(tmp_path, entry):
    path = tmp_path / "builder.yaml"
    path.write_text(entry.format("s3://bucket/models"))
    with pytest.raises(SettingsError, match="s3://bucket/models is an address"):
        load_settings(path, {})


def test_the_library_refuses_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (ModelRepository.open, ModelRepository.existing):
        with pytest.raises(RepositoryError, match="is an address"):
            act(Path("s3://bucket/models"))
    assert list(tmp_path.iterdir()) == []


def test_a_repository_behind_a_link_works(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "repository"
    link.symlink_to(tmp_path / "disk")
    repository = ModelRepository.open(link)
    add_version(repository)
    assert promote_one(repository, "int8", 1).version == 1
    assert link.is_symlink()
    for path in (link, tmp_path / "disk"):
        assert ModelRepository.existing(path).servable_precisions("cpu") == ("int8",)
    for command in ("list", "verify"):
        assert builder([command, "--repository", str(link)]) == 0
    assert serving(["preflight", "--precisions", "int8", "--repository", str(link)]) == 0
    assert "ready      network_int8/1" in capsys.readouterr().out
