"""``model.py`` of a version: the same lines in every one, and the only code that a version may hold.

A manifest proves nothing about code, since whoever writes the code can write the manifest.
"""

from __future__ import annotations

from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Final

from base.files import sha256_of

SHIM_NAME: Final = "model.py"

SHIM: Final = '''"""Runs this version's ``model.onnx`` (profile cpu)."""

from steps.onnx_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

RECORDED_SHA256: Final = frozenset({"4ff4cff67f9ac3e5758918e1b9b76c40799a346705e728ab25c7644007745b4d"})
"""Of :data:`SHIM`, in this release and in earlier ones; versions of these are served."""

_CODE: Final = tuple(all_suffixes())


def is_shim(path: Path) -> bool:
    """Whether a file is a recorded shim, byte for byte, and not a link to one."""
    return path.is_file() and not path.is_symlink() and sha256_of(path) in RECORDED_SHA256


def is_importable(path: Path) -> bool:
    """Whether Python would import a path as a module or package, were its folder searched."""
    return path.name.endswith(_CODE) or any((path / f"__init__{suffix}").is_file() for suffix in _CODE)
