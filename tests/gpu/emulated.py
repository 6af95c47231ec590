"""A device whose memory is the host's, and whose kernels are the project's, compiled by the host's compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steps.gpu.device import LAYER_KERNELS, source_of

COMPILER = shutil.which("g++")
KERNELS = ("letterbox", "suppress", "masks", "deliver")


class EmulatedDevice:
    """A :class:`steps.gpu.device.Device`; slow, and nothing is done later than it is asked for."""

    multiprocessors = 1

    def __init__(self, folder: Path) -> None:
        self._libraries = {}
        for file, kernels in {
            "letterbox": ["letterbox"],
            "suppress": ["suppress"],
            "masks": ["masks", "deliver"],
            "layers": list(LAYER_KERNELS),
        }.items():
            source = source_of(kernels[0]).replace(
                "extern __shared__ unsigned char alive[];", "unsigned char* alive = dynamic_shared;"
            )
            header = Path(__file__).with_name("emulation.h")
            exports = "\n".join(f"EMULATED({kernel})" for kernel in kernels)
            path = folder / f"{file}.cpp"
            path.write_text(f'#include "{header}"\n{source}\n{exports}\n')
            library = folder / f"{file}.so"
            options = ["-std=c++17", "-O2", "-ffp-contract=off", "-mf16c", "-w", "-shared", "-fPIC", "-Wl,-Bsymbolic"]
            subprocess.run([str(COMPILER), *options, str(path), "-o", str(library)], check=True)
            loaded = ctypes.CDLL(str(library))
            self._libraries |= {kernel: getattr(loaded, f"emulate_{kernel}") for kernel in kernels}
        self._kept: list[Any] = []

    def memory(self, size: int) -> int:
        return int(self.host((size + 15) // 16 * 16, np.uint8).ctypes.data)

    def host(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        dimensions = (shape,) if isinstance(shape, int) else shape
        size = int(np.prod(dimensions)) * np.dtype(dtype).itemsize
        raw = np.full(size + 32, 0, np.uint8)
        self._kept.append(raw)
        skip = -raw.ctypes.data % 16
        return raw[skip : skip + size].view(dtype).reshape(dimensions)

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, address: int, source: int, size: int) -> None:
        ctypes.memmove(address, source, size)

    def share(self, address: int, shape: tuple[int, ...], dtype: Any) -> Callable[[int, int], Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
        return lambda first, count: array[first : first + count]

    def received(self, capsule: np.ndarray) -> tuple[int, Any]:
        return capsule.ctypes.data, capsule

    def clear(self, address: int, size: int) -> None:
        ctypes.memset(address, 0, size)

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int = 0
    ) -> None:
        sizes = (*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block)))
        values = [np.array([argument]) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        self._libraries[kernel]((ctypes.c_uint * 6)(*sizes), pointers, ctypes.c_uint(shared))

    def record(self, queue: Callable[[], None]) -> Callable[[], None]:
        return queue

    def mark(self) -> None:
        pass

    def wait(self, mark: Any = None) -> None:
        pass
