import os
import time

import pytest

from base.heartbeat import Heartbeat, busy_for_s, heartbeat_path


@pytest.fixture
def prefix(tmp_path):
    return tmp_path / "segmentation_00000000_"


def test_busy_is_as_long_as_the_call(prefix):
    heartbeat = Heartbeat(prefix)
    assert busy_for_s(prefix, os.getpid()) == 0
    with heartbeat.busy():
        time.sleep(0.05)
        assert 0.05 <= busy_for_s(prefix, os.getpid()) < 5
    assert busy_for_s(prefix, os.getpid()) == 0


def test_a_call_that_fails_is_over_too(prefix):
    heartbeat = Heartbeat(prefix)
    with pytest.raises(ValueError, match="bad"), heartbeat.busy():
        raise ValueError("bad")
    assert busy_for_s(prefix, os.getpid()) == 0


def test_a_process_without_a_file_or_with_half_of_one_is_idle(prefix):
    assert busy_for_s(prefix, 1) == 0
    heartbeat_path(prefix, 1).write_bytes(b"\1\0\0")
    assert busy_for_s(prefix, 1) == 0


def test_a_number_that_another_process_had_starts_idle(prefix):
    heartbeat_path(prefix, os.getpid()).write_bytes(b"\1" * 8)
    Heartbeat(prefix)
    assert busy_for_s(prefix, os.getpid()) == 0


def test_the_file_is_its_owners_alone(prefix):
    assert Heartbeat(prefix).path.stat().st_mode & 0o777 == 0o600


def test_files_of_processes_that_are_gone_are_swept(prefix):
    gone, mine = heartbeat_path(prefix, 2**22 + 1), heartbeat_path(prefix, os.getppid())
    for path in (gone, mine):
        path.write_bytes(bytes(8))
    Heartbeat(prefix)
    assert not gone.exists()
    assert mine.exists()
