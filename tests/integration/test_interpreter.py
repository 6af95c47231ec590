"""Commands and the processes that they start take no modules from the working folder."""

import subprocess
import sys

import pytest

from base.errors import FetchError
from base.fetch import fetch_archive
from base.interpreter import PYTHON
from repository.plans import find_machine

ROOMS = "base bench builder client demo gateway load pipeline repository scenes serving steps"
OTHERS = "cv2 google grpc locust numpy onnx onnxruntime pip psutil rich tritonclient"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with a hostile module under every name but those that ``python -m`` imports before the command."""
    folder = tmp_path_factory.mktemp("hostile")
    listing = [sys.executable, "-c", "import runpy, sys; print(*sys.modules)"]
    before = set(subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split())
    for name in {*sys.stdlib_module_names, *ROOMS.split(), *OTHERS.split()} - before:
        (folder / f"{name}.py").write_text("open('taken', 'a').write(__name__ + ' ')\nraise SystemExit(9)\n")
    return folder


@pytest.fixture
def taken(hostile, monkeypatch):
    """Reads which modules were taken from the folder."""
    monkeypatch.chdir(hostile)
    yield lambda: [path.read_text() for path in hostile.glob("taken")]
    (hostile / "taken").unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["bench", "builder", "client", "demo", "gateway", "load", "serving"])
def test_a_command_takes_nothing_from_the_working_folder(hostile, taken, command):
    own = (hostile / f"{command}.py").rename(hostile / "renamed")  # Python itself would take it for the command
    try:
        shown = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=False)
    finally:
        own.rename(hostile / f"{command}.py")
    assert taken() == []
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 is missing; run `make test-unit` with it")
def test_processes_that_commands_start_take_nothing_from_it_either(tmp_path, taken, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    subprocess.run([*PYTHON, "-c", "import json, numpy, repository"], check=True)
    find_machine()
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch_archive("pinned-thing==1.2.3", "0" * 64, tmp_path)
    assert taken() == []
