"""Fetching a pinned file, with a folder in place of a package index: pip and its settings are real."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tarfile
import zipfile

import pytest

from base.errors import FetchError
from base.fetch import explain_pip, fetch_archive

NAME = "pinned_thing-1.2.3-py3-none-any.whl"
REQUIREMENT = "pinned-thing==1.2.3"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only source; holds one small wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        information = "pinned_thing-1.2.3.dist-info"
        wheel.writestr("pinned_thing.py", "")
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: pinned-thing\nVersion: 1.2.3\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def sha256(index):
    return hashlib.sha256((index / NAME).read_bytes()).hexdigest()


def test_a_file_is_fetched_and_then_served_from_the_cache(index, sha256, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    fetched = fetch_archive(REQUIREMENT, sha256, cache)
    assert fetched == cache / NAME
    assert fetched.read_bytes() == (index / NAME).read_bytes()
    assert list(cache.iterdir()) == [fetched]  # nothing temporary is left
    (index / NAME).unlink()
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("pip was called"))
    assert fetch_archive(REQUIREMENT, sha256, cache) == fetched


def test_a_source_archive_is_fetched_though_there_is_a_wheel(index, tmp_path):
    archive = index / "pinned_thing-1.2.3.tar.gz"
    parts = {
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "pinned-thing"\nversion = "1.2.3"\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: pinned-thing\nVersion: 1.2.3\n",
        "pinned_thing.py": "",
    }
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in parts.items():
            entry = tarfile.TarInfo(f"pinned_thing-1.2.3/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    fetched = fetch_archive(REQUIREMENT, sha256, tmp_path / "cache", source=True)
    assert fetched.name == archive.name
    assert fetched.read_bytes() == archive.read_bytes()


def test_a_file_put_there_by_hand_will_do_under_any_name(index, sha256, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (index / NAME).rename(cache / "download")
    assert fetch_archive(REQUIREMENT, sha256, cache) == cache / "download"


def test_a_damaged_file_in_the_cache_is_fetched_again(index, sha256, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / NAME).write_bytes(b"half of it")
    assert fetch_archive(REQUIREMENT, sha256, cache).read_bytes() == (index / NAME).read_bytes()


def test_another_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(FetchError, match=f"{REQUIREMENT} .*another SHA-256") as caught:
        fetch_archive(REQUIREMENT, "0" * 64, cache)
    assert str(cache) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_the_hash_is_checked_here_too(index, sha256, tmp_path, monkeypatch):
    def download(_requirement, _sha256, folder, _source):
        (folder / NAME).write_bytes(b"another file")

    monkeypatch.setattr("base.fetch._download", download)
    with pytest.raises(FetchError, match=f"does not have the pinned SHA-256 {sha256}"):
        fetch_archive(REQUIREMENT, sha256, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_cannot_be_had_is_named_with_pips_reason_and_the_way_around(index, tmp_path):
    with pytest.raises(FetchError, match=r"absent-thing==9\.9.*No matching distribution.*PIP_INDEX_URL") as caught:
        fetch_archive("absent-thing==9.9", "0" * 64, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_an_index_that_does_not_answer_is_recognized(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError, match=r"index was not reachable.*Connection refused"):
        fetch_archive(REQUIREMENT, "0" * 64, tmp_path / "cache")


def test_a_python_without_pip_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FetchError, match=r"has no pip.*-m ensurepip"):
        fetch_archive(REQUIREMENT, "0" * 64, tmp_path / "cache")


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("", "pip gave no reason"),
        ("WARNING: something else\nERROR: one\nERROR: two\nERROR: three\n", "pip says: two three"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip object at 0x1>: "
            "Name or service not known')': /simple/thing/\nERROR: nothing found\n[notice] a new pip\n",
            "the package index was not reachable (NewConnectionError('Name or service not known')); "
            "pip says: nothing found",
        ),
        (
            "WARNING: Could not fetch URL https://packages.example/: certificate verify failed\nERROR: nothing found\n",
            "the package index was not reachable (Could not fetch URL https://packages.example/: certificate verify "
            "failed); pip says: nothing found",
        ),
    ],
)
def test_pips_errors_become_one_line(stderr, line):
    assert explain_pip(stderr) == line
