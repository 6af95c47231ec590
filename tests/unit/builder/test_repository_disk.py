"""A disk that is full or cannot be written to: an error that says so, and nothing half written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from base.files import write_atomically
from repository.errors import RepositoryError
from repository.store import ModelRepository


@pytest.fixture
def repository(tmp_path):
    return ModelRepository.open(tmp_path / "repository")


def test_a_full_disk_is_told_with_its_remedy(repository):
    with pytest.raises(RepositoryError, match="No space left on device; make room on that disk"), repository.locked():
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_told_with_its_remedy(repository, number):
    told = f"network_int8: {os.strerror(number)}; make the repository writable"
    with pytest.raises(RepositoryError, match=told), repository.locked():
        raise OSError(number, os.strerror(number), str(repository.model_folder("int8")))


def test_other_errors_of_the_system_are_left_as_they_are(repository):
    with pytest.raises(ConnectionRefusedError), repository.locked():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def test_a_configuration_that_could_not_be_written_is_as_before(repository, monkeypatch):
    path = repository.config_path("int8", "cpu")
    before = path.read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "name: 'other'")
    assert path.read_text() == before
    assert repository.leftovers("int8") == []
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []
