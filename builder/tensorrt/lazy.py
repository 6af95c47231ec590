"""``trt``: TensorRT's Python module, imported when it is first used. What builds decides which flavor it is."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from repository.flavor import Flavor, detect_flavor


class _Lazy:
    """Stands for the module; attributes are looked up in the flavor in use."""

    module: ModuleType | None = None

    def __getattr__(self, name: str) -> Any:
        if self.module is None:
            self.module = detect_flavor().module
        return getattr(self.module, name)


_LAZY = _Lazy()

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = _LAZY


def use(flavor: Flavor) -> None:
    """Make ``trt`` the module of a flavor; call it before anything of ``trt`` is used."""
    _LAZY.module = flavor.module


__all__ = ["trt", "use"]
