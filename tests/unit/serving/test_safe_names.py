"""What tritonserver and a shell would stumble over is reached through links."""

import subprocess
import sys
from pathlib import Path

import pytest

from repository import running as state
from repository.errors import RepositoryError
from repository.running import is_safe, scratch_folder
from serving import safe_names
from serving.safe_names import SafeNames
from serving.tritonserver import Installation

PREFIX = "segmentation_0123abcd_"


@pytest.fixture
def names(tmp_path):
    return SafeNames(tmp_path / "names")


@pytest.mark.parametrize(
    "name", ["with space", "é", "it's", "a&b", "$HOME", "a;b", "(1)", "a:b", "\udcff", "*", "a\nb", "~"]
)
def test_an_odd_name_gets_a_link_to_the_same_files(names, tmp_path, name):
    odd = tmp_path / name
    odd.mkdir()
    (odd / "file").write_text("here")
    link = names.of(odd)
    assert is_safe(link)
    assert not is_safe(odd)
    assert (link / "file").read_text() == "here"
    assert names.of(odd) == link  # one link for each folder
    # What the shell of the Python backend makes of it.
    shown = subprocess.run(["bash", "-c", f"cat {link}/file"], capture_output=True, text=True, check=True)
    assert shown.stdout == "here"


def test_an_ordinary_path_stays_as_it_is(names, tmp_path):
    assert names.of(tmp_path) == tmp_path
    installation = Installation(Path("/opt/t/bin/tritonserver"), Path("/opt/t/backends"), (Path("/opt/lib"),))
    assert names.installation(installation) == installation
    assert names.python() == Path(sys.executable).parent
    assert not list(names.folder.iterdir())


def test_an_odd_environment_is_replaced_by_one_with_the_same_packages(names, tmp_path, monkeypatch):
    odd = tmp_path / "prüfung é" / "bin"
    odd.mkdir(parents=True)
    (odd / "python").symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(safe_names.sys, "executable", str(odd / "python"))
    python = names.python() / "python3"
    assert is_safe(python)
    # As the stub starts it: without environment variables, in the locale "C".
    code = "import numpy, cv2, pipeline; print(numpy.__version__, pipeline.__file__)"
    shown = subprocess.run([python, "-I", "-c", code], env={}, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1.26.4", str(Path(__file__).resolve().parents[3] / "pipeline" / "__init__.py")]


def test_without_a_folder_of_a_safe_name_nothing_starts(monkeypatch, tmp_path):
    odd = tmp_path / "é"
    odd.mkdir()
    monkeypatch.setattr(state, "_scratch_parents", lambda: [odd])
    with pytest.raises(RepositoryError, match="set TMPDIR to one that is writable"):
        scratch_folder(PREFIX)
    monkeypatch.setattr(state, "_scratch_parents", lambda: [odd, tmp_path])
    assert scratch_folder(PREFIX) == tmp_path / f"{PREFIX}files"


def test_what_a_dead_server_left_is_cleared_wherever_it_lay(monkeypatch, tmp_path):
    parents = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setattr(state, "_scratch_parents", lambda: parents)
    for parent in parents:
        (parent / f"{PREFIX}files").mkdir(parents=True)
        (parent / "other").mkdir()
    state.clear_after(PREFIX)
    assert [[entry.name for entry in parent.iterdir()] for parent in parents] == [["other"], ["other"]]
