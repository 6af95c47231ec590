import os

import pytest

from base.files import is_private, open_private, private_folder
from tests.strangers import belongs_to_another

READ_AND_MAKE = os.O_RDWR | os.O_CREAT


def test_a_folder_is_made_for_its_owner_alone_and_taken_again(tmp_path):
    path = private_folder(tmp_path / "state")
    assert path.stat().st_mode & 0o777 == 0o700
    assert private_folder(path) == path


def link(path, target):
    path.symlink_to(target)


def link_to_nothing(path, target):
    path.symlink_to(target / "nowhere")


def file(path, target):
    path.touch(0o600)


def open_to_others(path, target):
    path.mkdir()
    path.chmod(0o707)


@pytest.mark.parametrize("squat", [link, link_to_nothing, file, open_to_others])
def test_what_somebody_else_put_there_is_no_private_folder(tmp_path, squat):
    target = private_folder(tmp_path / "target")
    squat(tmp_path / "state", target)
    with pytest.raises(PermissionError):
        private_folder(tmp_path / "state")
    assert not list(target.iterdir())


def test_another_users_folder_is_no_private_one(tmp_path, monkeypatch):
    path = belongs_to_another(monkeypatch, private_folder(tmp_path / "state"))
    assert not is_private(path)
    with pytest.raises(PermissionError, match=f"nobody else can enter: '{path}'"):
        private_folder(path)


def test_a_file_is_made_for_its_owner_alone_and_opened_again(tmp_path):
    for _ in range(2):
        os.close(open_private(tmp_path / "file", READ_AND_MAKE))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_another_users_file_is_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch(0o600)
    belongs_to_another(monkeypatch, path)
    with pytest.raises(PermissionError):
        open_private(path, READ_AND_MAKE)


def writable(path, mine):
    path.touch()
    path.chmod(0o666)


def linked(path, mine):
    path.symlink_to(mine)


def pipe(path, mine):
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("squat", [writable, linked, pipe])
def test_what_others_could_have_put_there_is_not_opened(tmp_path, squat):
    mine = tmp_path / "mine"
    mine.touch(0o600)
    squat(tmp_path / "file", mine)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path has no cheaper way
    with pytest.raises(OSError, match="file"):
        open_private(tmp_path / "file", READ_AND_MAKE)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
