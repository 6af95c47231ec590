"""The client's wheel in a separate environment, before the real server.

``make test-adapters`` makes the environment (``ADAPTERS_VENV``) with the real packages, without this project's pins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.server import ServerOptions, TritonServer
from tests.integration.conftest import patient_repository, reference, repository  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[2]
VENV = os.environ.get("ADAPTERS_VENV")


def pytest_collection_modifyitems(items):
    if VENV is None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="ADAPTERS_VENV is not set; make test-adapters runs it"))


@pytest.fixture(scope="session")
def server(patient_repository):  # noqa: F811
    options = ServerOptions(patient_repository)
    with TritonServer(options) as running:
        yield running


@pytest.fixture(scope="session")
def python():
    """The environment's Python, with the client as it is now."""
    interpreter = Path(VENV).absolute() / "bin" / "python"
    folder = Path(VENV) / "wheel"
    subprocess.run([sys.executable, ROOT / "requirements" / "client_wheel.py", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    command = [interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel]
    subprocess.run(command, check=True)
    return interpreter


@pytest.fixture
def run(python, server, tmp_path):
    """Run a script in the environment, from a folder with nothing in it; returns the JSON of its last line."""

    def started(script, *arguments, **variables):
        given = {"SEGMENTATION_URL": server.grpc_url, "SEGMENTATION_HTTP_URL": server.http_url, **variables}
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **given}
        command = [python, "-c", script, *map(str, arguments)]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return json.loads(result.stdout.splitlines()[-1])

    return started
