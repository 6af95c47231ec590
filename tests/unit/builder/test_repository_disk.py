"""A disk that is full or cannot be written to: an error that says so, and nothing half written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from base.files import write_atomically
from repository.errors import RepositoryError
from repository.store import ModelRepository


@pytest.fixture
def repository(tmp_path):
    return ModelRepository.open(tmp_path / "repository")


def test_a_full_disk_is_reported_with_its_remedy(repository):
    with pytest.raises(RepositoryError, match="No space left on device; make room on that disk"), repository.locked():
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_reported_with_its_remedy(repository, number):
    expected = rf"network_int8: {os.strerror(number)}; .*make it writable for this user"
    with pytest.raises(RepositoryError, match=expected), repository.locked():
        raise OSError(number, os.strerror(number), str(repository.model_folder("int8")))


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing; as root, make test-unit runs it")
def test_another_users_repository_is_refused_at_once_with_both_users():
    """In a separate process, which becomes another user."""
    code = (
        "import os, sys; from pathlib import Path; from repository.store import ModelRepository\n"
        "os.setuid(65534); ModelRepository(Path(sys.argv[1])).check_writable()"
    )

    def said():
        done = subprocess.run(
            [sys.executable, "-c", code, repository.path], capture_output=True, text=True, check=False
        )
        return done.stderr.splitlines()[-1]

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        repository = ModelRepository.open(Path(folder) / "repository")
        for mode in (0o755, 0o700):
            repository.path.chmod(mode)
            assert "repository: Permission denied; it belongs to user 0, and this is user 65534: make it" in said()
        for place in (repository.path, *map(repository.model_folder, ("fp32", "fp16"))):
            os.chown(place, 65534, 0)
        os.chown(repository.model_folder("int8"), 1234, 1234)
        assert "network_int8: Permission denied; it belongs to user 1234" in said()
        assert "(in a container: SEGMENTATION_UID=1234 in .env)" in said()


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing; as root, make test-unit runs it")
def test_another_users_folder_that_all_may_write_to_becomes_a_repository():
    code = (
        "import os, sys; from pathlib import Path; from repository.store import ModelRepository\n"
        "os.setuid(65534); ModelRepository.open(Path(sys.argv[1])).check_writable()"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        subprocess.run([sys.executable, "-c", code, folder], check=True)
        assert (Path(folder) / "network_int8/configs/cpu.pbtxt").is_file()
        assert (Path(folder) / "network_int8").stat().st_uid == 65534


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
