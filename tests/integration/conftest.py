"""A real tritonserver with real versions of the reference model, built once for each state of the builder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from base.cache import cache_dir
from base.progress import Steps
from builder.build import build
from builder.settings import load_settings
from repository.store import read_config, write_config
from scenes.reference import fetch_reference
from serving.server import ServerOptions, TritonServer
from tests.unit.serving.repositories import tiny_repository

ROOT = Path(__file__).resolve().parents[2]
LONGEST = ("test_readme", "test_soak", "test_hostile_input", "test_mask_work", "test_faults")
# A quarter of the usual scenes: the tests compare with the photographs, not with the gates' margins.
SETTINGS = {"calibration.scenes": 32, "verification.scenes": 32}


def pytest_collection_modifyitems(items):
    """Long files first, so that the processes of the suite end together."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def reference():
    return fetch_reference()


@pytest.fixture(scope="session")
def repository(reference, tmp_path_factory):
    """A copy, for this run to change, of what the builder made the first time that it was as it is now."""
    kept = kept_repository("small")
    with alone(kept.parent / "lock"):  # another process of the suite may be building it
        if not kept.exists():
            fresh = tmp_path_factory.mktemp("built") / "repository"
            build(load_settings(None, {"repository": fresh, **SETTINGS}), Steps(Console(quiet=True)))
            keep(fresh, kept)
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("model") / "repository"))


@pytest.fixture(scope="session")
def patient_repository(repository, tmp_path_factory):
    """Another copy, whose admission refuses nothing for being late: for tests of anything but that, whoever else has
    the cores."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("patient") / "repository"))
    config = read_config(copy / "admission/config.pbtxt")
    config.parameters["max_latency_ms"].string_value = "600000"
    write_config(copy / "admission/config.pbtxt", config)
    return copy


def kept_repository(name: str) -> Path:
    """Where a repository is kept that the builder makes as it is now; those of earlier states are removed."""
    folder = cache_dir() / "tests" / _state_of_the_builder()
    with alone(cache_dir() / "tests.lock"):
        if not folder.exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
    return folder / name


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file; the suite runs in several processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def keep(repository: Path, kept: Path) -> None:
    """Keep a copy of a repository; it appears whole or not at all, and the first of two runs at once decides."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        whole = Path(shutil.copytree(repository, Path(folder) / "whole"))
        try:
            whole.rename(kept)
        except OSError:
            if not kept.exists():
                raise


def _state_of_the_builder() -> str:
    """A digest of all that decides what a build gives: code, the models it copies, packages, settings."""
    digest = hashlib.sha256(f"{sys.version} {SETTINGS}".encode())
    rooms = ("base", "pipeline", "repository", "scenes", "steps", "builder")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*")]
    models = [path for path in (ROOT / "model_repository").rglob("*") if path.suffix in (".py", ".in")]
    models = [path for path in models if not path.match("network_*/[0-9]*/*")]
    for path in sorted([*sources, *models, *(ROOT / "requirements").glob("*.txt")]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def server(repository):
    with TritonServer(ServerOptions(repository)) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server whose models need no network; it starts in a second."""
    with TritonServer(ServerOptions(tiny_repository(tmp_path_factory.mktemp("small") / "tiny"))) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def url(server, protocol):
    return server.grpc_url if protocol == "grpc" else server.http_url
