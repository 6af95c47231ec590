"""Finds tritonserver: on PATH, or unpacked from the pinned wheel that carries it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from base.cache import cache_dir
from base.fetch import fetch_archive
from base.names import STUB_NAME
from serving.environment import check_platform, check_python, find_libpython
from serving.errors import ServingError

WHEEL: Final = "nvidia-pytriton==0.7.0"
WHEEL_SHA256: Final = {
    "x86_64": "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "aarch64": "f99e07ee56fe065337453956afba17d2673e02ec6a632c3de26ce6e7b32a0898",
}
EMBEDDED_VERSION: Final = "2.51.0"
"""Version of the server inside the wheel."""

_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_SERVER: Final = "pytriton/tritonserver/bin/tritonserver"
_PYTHON_BACKEND: Final = "pytriton/tritonserver/backends/python/"
_STUBS: Final = "pytriton/tritonserver/python_backend_stubs/"
_LIBRARIES: Final = "nvidia_pytriton.libs/"

# Added by triton-inference-server/server pull request 8174 of April 2025; two releases later, to be safe.
_REQUEST_BOUND_SINCE: Final = (2, 60)
_CONTAINER_BACKENDS: Final = Path("/opt/tritonserver/backends")


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started.

    Attributes:
        binary: the program.
        backends: folder of the backends.
        library_path: folders for ``LD_LIBRARY_PATH``, in front of what is there.
        version: of the server, such as ``2.51.0``; None if it does not say.
    """

    binary: Path
    backends: Path
    library_path: tuple[Path, ...]
    version: str | None = None

    @property
    def has_request_bound(self) -> bool:
        """Whether the server can bound an HTTP request's size (``--http-max-input-size``, from 2.60 on)."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version or "")
        return numbers is not None and tuple(map(int, numbers.groups())) >= _REQUEST_BOUND_SINCE

    def check_backend(self, name: str) -> None:
        """Check that the server has a backend.

        Raises:
            ServingError: it does not.
        """
        if not (self.backends / name).is_dir():
            raise ServingError(
                f"tritonserver {self.version or ''} at {self.binary} has no {name} backend in {self.backends}; "
                "use NVIDIA's container, whose server has it, or --profile cpu"
            )


def find_tritonserver() -> Installation:
    """Find the server, or unpack it into the cache.

    Raises:
        ServingError: this machine cannot run it, or it cannot be fetched.
    """
    on_path = shutil.which("tritonserver")
    if on_path is not None:
        binary = Path(on_path).resolve()
        beside = binary.parent.parent / "backends"
        backends = beside if beside.is_dir() else _CONTAINER_BACKENDS
        # Set in NVIDIA's images.
        return Installation(binary, backends, (), os.environ.get("TRITON_SERVER_VERSION"))
    check_platform()
    check_python()
    libpython = find_libpython()
    root = _unpacked()
    backends = root / "backends"
    return Installation(root / "bin" / "tritonserver", backends, (root / "lib", libpython), EMBEDDED_VERSION)


def unpack_tritonserver(root: Path) -> None:
    """Fetch the server for this architecture and Python, and unpack it into a new folder, for an image to hold.

    Raises:
        ServingError: the folder exists, or the server cannot be fetched.
    """
    if root.exists():
        raise ServingError(f"{root} exists; give a new folder")
    wheel = fetch_archive(WHEEL, WHEEL_SHA256[platform.machine()], cache_dir() / "archives")
    unpack_wheel(wheel, root, _PYTHON)


def _unpacked() -> Path:
    """The unpacked server for this architecture and Python; made at the first call."""
    target = cache_dir() / f"tritonserver-{EMBEDDED_VERSION}-{platform.machine()}-py{_PYTHON}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".unpacking-") as folder:
        root = Path(folder) / "root"
        unpack_tritonserver(root)
        try:
            root.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    return target


def unpack_wheel(wheel: Path, root: Path, python: str) -> None:
    """Unpack the server, its Python backend with the stub of one Python version, and its libraries.

    Args:
        wheel: the wheel.
        root: folder to write ``bin``, ``backends/python`` and ``lib`` into.
        python: such as ``3.11``.

    Raises:
        ServingError: the wheel lacks a part, or names a file outside of its folder.
    """
    stub = f"{_STUBS}{python}/{STUB_NAME}"
    written = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            place = _place(name, stub)
            if place is None:
                continue
            target = root / place
            if not target.resolve().is_relative_to(root.resolve()):
                raise ServingError(f"{wheel}: refuses to unpack {name!r} outside of {root}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            target.chmod(0o755)
            written.add(name)
    for part in (_SERVER, stub):
        if part not in written:
            raise ServingError(f"{wheel}: lacks {part}; delete it and try again")


def _place(name: str, stub: str) -> str | None:
    """Where a file of the wheel goes; None if it is not needed."""
    if name.endswith("/"):
        return None
    if name == _SERVER:
        return "bin/tritonserver"
    if name == stub:
        return f"backends/python/{STUB_NAME}"
    if name.startswith(_PYTHON_BACKEND):
        return f"backends/python/{name.removeprefix(_PYTHON_BACKEND)}"
    if name.startswith(_LIBRARIES) and not name.startswith(f"{_LIBRARIES}libpython"):  # of stubs that are not used
        return f"lib/{name.removeprefix(_LIBRARIES)}"
    return None
