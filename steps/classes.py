"""How many classes the served network has, as its versions' manifests say."""

from __future__ import annotations

import functools
import json
from pathlib import Path


def class_count(repository: Path) -> int | None:
    """Most classes of any version in a model repository; None where no manifest says it.

    Read again where a manifest is new or has changed, since versions are added while the server runs.
    """
    manifests = [(path, path.stat().st_mtime_ns) for path in repository.glob("network_*/*/manifest.json")]
    return max(filter(None, (_count(path, changed) for path, changed in manifests)), default=None)


@functools.lru_cache(maxsize=256)
def _count(manifest: Path, _changed_ns: int) -> int | None:
    try:
        count = json.loads(manifest.read_bytes())["source"]["num_classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `verify` reports a broken manifest
    return count if isinstance(count, int) else None
