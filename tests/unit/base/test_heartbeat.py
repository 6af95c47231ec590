import os
import time

import pytest

from base.heartbeat import Heartbeat, busy_for_s, heartbeat_path


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_busy_is_as_long_as_the_call(folder):
    heartbeat = Heartbeat(folder)
    assert busy_for_s(folder, os.getpid()) == 0
    with heartbeat.busy():
        time.sleep(0.05)
        assert 0.05 <= busy_for_s(folder, os.getpid()) < 5
    assert busy_for_s(folder, os.getpid()) == 0


def test_a_call_that_fails_is_over_too(folder):
    heartbeat = Heartbeat(folder)
    with pytest.raises(ValueError, match="bad"), heartbeat.busy():
        raise ValueError("bad")
    assert busy_for_s(folder, os.getpid()) == 0


def test_a_process_without_a_file_or_with_half_of_one_is_idle(folder):
    assert busy_for_s(folder, 1) == 0
    heartbeat_path(folder, 1).write_bytes(b"\1\0\0")
    assert busy_for_s(folder, 1) == 0


def test_a_number_that_another_process_had_starts_idle(folder):
    heartbeat_path(folder, os.getpid()).write_bytes(b"\1" * 8)
    Heartbeat(folder)
    assert busy_for_s(folder, os.getpid()) == 0


def test_the_file_is_its_owners_alone(folder):
    assert Heartbeat(folder).path.stat().st_mode & 0o777 == 0o600


def test_files_of_processes_that_are_gone_are_swept(folder):
    gone, mine = heartbeat_path(folder, 2**22 + 1), heartbeat_path(folder, os.getppid())
    for path in (gone, mine):
        path.write_bytes(bytes(8))
    Heartbeat(folder)
    assert not gone.exists()
    assert mine.exists()
