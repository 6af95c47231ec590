"""Builds the wheel of the client alone: ``python requirements/client_wheel.py OUT``.

The checkout's rooms ``client`` and ``pipeline`` become one package, ``triton_segmentation``, since two modules of such
names would not do in somebody else's environment. Only those modules of ``pipeline`` are in it that the client imports.
It asks for any NumPy from 1.26 on: the server's pins are not its own.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "triton_segmentation"
ROOMS: Final = {"client": PACKAGE, "pipeline": f"{PACKAGE}.pipeline"}
"""Room of the checkout to the package that it becomes."""

_IMPORT: Final = re.compile(r"^(\s*)(from|import) (client|pipeline)(?=[. ])", re.MULTILINE)
_COMMAND: Final = "python -m client"
_PROJECT: Final = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "triton-segmentation-client"
version = "{{version}}"
description = "Calls an instance segmentation server on Triton: images, folders, videos; gRPC and HTTP."
readme = "README.md"
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.10"
dependencies = [
    "numpy>=1.26,<3",
    "opencv-python-headless>=4.10",
    "pillow>=10",
    "rich>=13",
    "tritonclient[grpc]>=2.50,<3",
    "typing-extensions>=4.8",
]

[project.optional-dependencies]
http = ["tritonclient[http]>=2.50,<3"]
video = ["supervision>=0.26", "trackers>=2.2"]
heic = ["pillow-heif>=1.1"]

[project.scripts]
segmentation-client = "{PACKAGE}.__main__:main"

[tool.hatch.build.targets.wheel]
packages = ["{PACKAGE}"]
"""
_README: Final = f"""\
# Client of an instance segmentation server on Triton

```python
from {PACKAGE} import SegmentationClient

with SegmentationClient("127.0.0.1:8001", protocol="grpc", precision="int8") as client:
    for found in client.segment("photograph.jpg", confidence=0.5):
        print(found.class_name, found.score, found.box, found.mask().sum())
```

`python -m {PACKAGE} photographs/ --out out --json out/result.json` does the same for folders, videos and cameras;
`--help` lists all options. Over HTTP: `pip install triton-segmentation-client[http]`, and `protocol="http"`. For
`--track`, which follows objects through a video: `[video]`.
"""


def modules() -> dict[str, Path]:
    """Module names of the client, and of what it imports of this project, with their files."""
    waiting = ["client", *(f"client.{path.stem}" for path in sorted((ROOT / "client").glob("*.py")))]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        place = ROOT.joinpath(*name.split("."))
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found[name] = path
        waiting += (one for one in _imports(path) if one.partition(".")[0] in ROOMS)
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def write_source(folder: Path, version: str) -> None:
    """Write what the wheel is built from into a folder."""
    for path in modules().values():
        room, *rest = path.relative_to(ROOT).parts
        target = folder.joinpath(*ROOMS[room].split("."), *rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _IMPORT.sub(lambda match: f"{match[1]}{match[2]} {ROOMS[match[3]]}", path.read_text(encoding="utf-8"))
        target.write_text(text.replace(_COMMAND, f"python -m {PACKAGE}"), encoding="utf-8")
    (folder / PACKAGE / "py.typed").touch()
    (folder / "README.md").write_text(_README, encoding="utf-8")
    (folder / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    (folder / "pyproject.toml").write_text(_PROJECT.format(version=version), encoding="utf-8")


def build(out: Path) -> Path:
    """Build the wheel into a folder; returns its path.

    Raises:
        subprocess.CalledProcessError: hatchling fails; it says why.
    """
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    version = found[1] if found else "0"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_source(Path(folder), version)
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out.resolve())]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob(f"triton_segmentation_client-{version}-*.whl"))


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "out")))
