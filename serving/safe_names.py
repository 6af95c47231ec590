"""Links for paths with blanks or non-ASCII letters, which tritonserver cannot use.

tritonserver starts the Python backend's processes through ``bash -c`` without quotes, so that a blank in the path of a
model, of the backend or of a library cuts it. And the Python in such a process reads ``.pth`` files in the encoding of
the locale "C": with an editable installation below a folder like ``Prüfung`` it does not start.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Final

from repository.running import is_safe
from serving.tritonserver import Installation

_ROOT: Final = Path(__file__).resolve().parent.parent
_PACKAGES: Final = ("site-packages", "dist-packages")


class SafeNames:
    """Links to folders, made where a folder's own path cannot be used.

    Attributes:
        folder: holds the links; tritonserver can use its path.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Args:
            folder: does not exist yet.

        Raises:
            OSError: it cannot be made.
        """
        self.folder = folder
        self._links: dict[Path, Path] = {}
        folder.mkdir(mode=0o700)

    def of(self, path: Path) -> Path:
        """The path itself if tritonserver can use it, else a link to it; the same link at every call."""
        if is_safe(path):
            return path
        if path not in self._links:
            self._links[path] = self.folder / f"link{len(self._links)}"
            self._links[path].symlink_to(path)
        return self._links[path]

    def installation(self, installation: Installation) -> Installation:
        """The server under paths that it can use."""
        return dataclasses.replace(
            installation,
            binary=self.of(installation.binary.parent) / installation.binary.name,
            backends=self.of(installation.backends),
            library_path=tuple(map(self.of, installation.library_path)),
        )

    def python(self) -> Path:
        """Folder of the ``python3`` whose environment the backend's processes use.

        It is this process's own or, where its path cannot be used, one made here with the same packages. These
        processes ignore ``PYTHONPATH``.
        """
        own = Path(sys.executable).parent
        if is_safe(own):
            return own
        environment = self.folder / "python"
        packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        packages.mkdir(parents=True)
        found = [_ROOT, *(Path(entry) for entry in sys.path if Path(entry).name in _PACKAGES)]
        (packages / "own.pth").write_text("".join(f"{self.of(folder)}\n" for folder in found), encoding="ascii")
        base = Path(sys.executable).resolve()
        (environment / "pyvenv.cfg").write_text(f"home = {self.of(base.parent)}\n", encoding="ascii")
        (environment / "bin").mkdir()
        (environment / "bin" / "python3").symlink_to(base)
        return environment / "bin"
