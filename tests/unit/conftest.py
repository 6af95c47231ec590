"""The checkout's configurations, made from templates before modules of tests look at them, and how tests are run."""

from __future__ import annotations

import gc
import os

import pytest

from repository.store import SHIPPED_REPOSITORY, ModelRepository


def pytest_configure() -> None:
    ModelRepository.open(SHIPPED_REPOSITORY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for a process or for a time to pass."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Tests live until the end: to look for garbage among three thousand of them takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
