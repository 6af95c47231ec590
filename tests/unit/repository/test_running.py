"""Which servers run, and what is swept when one was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from repository import running as state
from repository.errors import RepositoryError
from repository.running import RunningServer, clear_after, running_servers, scratch_folder
from tests.strangers import belongs_to_another

PREFIX = "segmentation_0123abcd_"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_SEGMENTATION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def start(tmp_path):
    """Starts processes whose program goes by the name of the server."""
    program = tmp_path / "tritonserver"
    shutil.copy(shutil.which("sleep"), program)
    processes = []

    def begin() -> int:
        processes.append(subprocess.Popen(["sleep", "60"], executable=program))
        return processes[-1].pid

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def alive(start):
    return start()


@pytest.fixture
def dead():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def a_server(pid, repository, **changes):
    values = {"http": "127.0.0.1:1", "grpc": "127.0.0.1:2", "metrics": "127.0.0.1:3", "admin_secret": "s3cret"}
    return RunningServer(pid=pid, profile="cpu", repository=str(repository), **{**values, **changes})


def test_a_live_server_is_found_by_its_repository(alive, tmp_path):
    server = a_server(alive, tmp_path, shm_prefix=PREFIX)
    server.write()
    assert running_servers() == [server]
    assert running_servers(tmp_path) == [server]
    assert running_servers(tmp_path / "other") == []


def test_the_secret_is_for_this_user_alone(alive, tmp_path, cache):
    path = a_server(alive, tmp_path).write()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - hidden files count too


def test_a_server_that_a_script_started_counts_too(tmp_path):
    script = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)", "/opt/tritonserver"]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        a_server(process.pid, tmp_path).write()
        assert running_servers(tmp_path)[0].pid == process.pid
        process.kill()


def test_a_server_counts_from_the_moment_it_is_started(start, tmp_path):
    for count in range(1, 21):
        a_server(start(), tmp_path).write()
        assert len(running_servers()) == count


def test_what_a_killed_server_left_is_swept(dead, alive, tmp_path, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    for name in (f"{PREFIX}one", f"{PREFIX}two", "segmentation_ffffffff_other", "foreign"):
        (shared / name).touch()
    monkeypatch.setattr(state, "SHARED_MEMORY", shared)
    path = a_server(dead, tmp_path, shm_prefix=PREFIX).write()
    a_server(alive, tmp_path, shm_prefix="segmentation_ffffffff_").write()
    assert [server.pid for server in running_servers()] == [alive]
    assert not path.exists()
    assert {file.name for file in shared.iterdir()} == {"segmentation_ffffffff_other", "foreign"}


def test_processes_that_a_killed_server_left_are_ended(dead, tmp_path):
    def stub(region, name="triton_python_backend_stub"):
        command = [f"/opt/backends/python/{name}", "-c", "read _", "model.py", region]
        return subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE)

    left, foreign, other = stub(f"{PREFIX}one"), stub(f"{PREFIX}one", "editor"), stub("segmentation_ffffffff_other")
    try:
        a_server(dead, tmp_path, shm_prefix=PREFIX).write()
        assert running_servers() == []
        assert left.wait(5) == -signal.SIGKILL
        assert foreign.poll() is other.poll() is None
    finally:
        for process in (left, foreign, other):
            process.kill()
            process.communicate()


def test_another_process_under_an_old_number_is_no_server(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        path = a_server(process.pid, tmp_path).write()
        assert running_servers() == []
        process.kill()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_broken_file_is_ignored(alive, tmp_path, cache, text):
    a_server(alive, tmp_path).write()
    (cache / "servers" / "1.json").write_text(text)
    assert [server.pid for server in running_servers()] == [alive]


@pytest.mark.parametrize("prefix", ["", "*", "segmentation_", "../segmentation_0123abcd_", f"{PREFIX}*", f"{PREFIX}\n"])
def test_nothing_but_the_prefix_of_one_server_removes_anything(tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(state, "SHARED_MEMORY", tmp_path)
    region = tmp_path / f"{PREFIX}one"
    region.touch()
    clear_after(prefix)
    assert region.exists()
    clear_after(PREFIX)
    assert not region.exists()


# Another user of this machine.


def test_another_users_state_file_is_ignored(alive, tmp_path, monkeypatch):
    mine = a_server(alive, tmp_path, http="127.0.0.1:4")
    theirs = mine.write().rename(tmp_path / "cache" / "servers" / "1.json")
    mine.write()
    belongs_to_another(monkeypatch, theirs)
    assert running_servers() == [mine]
    theirs.unlink()
    theirs.symlink_to(f"{alive}.json")
    assert running_servers() == [mine]


def test_another_user_who_made_the_folder_first_is_neither_trusted_nor_in_the_way(alive, tmp_path, cache, monkeypatch):
    planted = a_server(alive, tmp_path, grpc="127.0.0.1:9").write()
    belongs_to_another(monkeypatch, planted.parent)
    assert running_servers() == []
    server = a_server(alive, tmp_path)
    path = server.write()
    assert path.parent == cache / f"servers-{os.geteuid()}"
    assert running_servers() == [server]
    belongs_to_another(monkeypatch, path.parent)
    with pytest.raises(RepositoryError, match="TRITON_SEGMENTATION_CACHE"):
        scratch_folder(PREFIX)


def test_what_cannot_be_removed_stops_no_start(dead, tmp_path, monkeypatch):
    shared = tmp_path / "shm"
    (shared / f"{PREFIX}folder").mkdir(parents=True)
    (shared / f"{PREFIX}folder").chmod(0o755)
    (shared / f"{PREFIX}state").mkdir(mode=0o700)
    (shared / f"{PREFIX}state" / "admission").touch()
    monkeypatch.setattr(state, "SHARED_MEMORY", shared)
    path = a_server(dead, tmp_path, shm_prefix=PREFIX).write()
    assert running_servers() == []
    assert not path.exists()
    assert [entry.name for entry in shared.iterdir()] == [f"{PREFIX}folder"]
