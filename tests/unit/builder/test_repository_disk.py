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


def test_only_those_who_may_write_can_hold_the_lock(repository):
    lock = repository.path / ".lock"
    lock.chmod(0o644)  # of an older release: any user could open it, and lock it for good
    with repository.locked():
        assert lock.stat().st_mode & 0o007 == 0
    lock.unlink()
    with repository.locked():
        assert lock.stat().st_mode & 0o007 == 0
        assert repository.is_locked()


def test_a_link_in_the_place_of_the_lock_is_not_followed(repository, tmp_path):
    (tmp_path / "other").write_text("precious")
    (repository.path / ".lock").unlink(missing_ok=True)
    (repository.path / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(RepositoryError, match="remove this link"), repository.locked():
        pass
    assert (tmp_path / "other").read_text() == "precious"
