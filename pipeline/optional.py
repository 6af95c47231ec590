"""Packages that only some callers need."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, package: str) -> Any:
    """Import a module of a package that may be missing.

    Raises:
        ImportError: it is; one line that says what to install.

    Example:
        >>> optional("no_such_module", "no-such-package")
        Traceback (most recent call last):
        ImportError: no_such_module is missing; install it: pip install no-such-package
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing != module and not module.startswith(f"{missing}."):
            package = missing  # something that the package itself needs
        raise ImportError(f"{missing} is missing; install it: pip install {package}") from None
