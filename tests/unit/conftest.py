"""The checkout's configurations, made from its templates, before modules of tests look at them."""

from __future__ import annotations

from repository.store import SHIPPED_REPOSITORY, ModelRepository


def pytest_configure() -> None:
    ModelRepository.open(SHIPPED_REPOSITORY)
