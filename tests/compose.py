"""``docker-compose.yml``, and ``compose.gpu.yaml`` over it, as Compose's own program resolves them."""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.tools import compose

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("client", "monitoring", "load")
STACKS = {"cpu": ("docker-compose.yml",), "gpu": ("docker-compose.yml", "compose.gpu.yaml")}


def resolved(*profiles: str, stack: str = "cpu", **variables: str) -> dict[str, Any]:
    """A stack's files with their defaults, or with variables of ``.env`` given."""
    return dict(json.loads(_resolved(profiles, stack, tuple(variables.items()))))


@lru_cache
def _resolved(profiles: tuple[str, ...], stack: str, variables: tuple[tuple[str, str], ...]) -> str:
    # An .env of this checkout must not change what is tested.
    command = [compose(), "--env-file", os.devnull]
    for name in STACKS[stack]:
        command += ["-f", ROOT / name]
    for profile in profiles:
        command += ["--profile", profile]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **dict(variables)}
    result = subprocess.run(
        [*command, "config", "--format", "json"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # a variable without a default is a warning
    return result.stdout
