"""Where fetched files are kept."""

from __future__ import annotations

from pathlib import Path

from base import cache
from base.cache import cache_dir


def test_the_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_SEGMENTATION_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()


def test_a_checkout_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_SEGMENTATION_CACHE", raising=False)
    (tmp_path / "serving").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "serving" / "cache.py"))
    assert cache_dir() == tmp_path / ".cache"


def test_an_installed_package_uses_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_SEGMENTATION_CACHE", raising=False)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "site-packages" / "serving" / "cache.py"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "triton-instance-segmentation"
