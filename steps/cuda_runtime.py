"""The few calls of the CUDA runtime that ONNX Runtime does not offer to Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LIBRARIES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_BLOCKING_SYNC: Final = 4  # cudaDeviceScheduleBlockingSync, driver_types.h
_HOST_TO_DEVICE: Final = 1  # cudaMemcpyKind, driver_types.h
_DEVICE_TO_HOST: Final = 2
_SUCCESS: Final = 0


class CudaRuntime:
    """Page-locked memory, copies into and out of it, and threads that sleep while the GPU works.

    They only make transfers faster: where the library is missing or fails, :attr:`problems` says so, and nothing else
    changes.

    Attributes:
        problems: what could not be done.
    """

    def __init__(self, names: Sequence[str] = LIBRARIES) -> None:
        self.problems: list[str] = []
        self._library: Any = None
        for name in names:
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        if self._library is None:
            self.problems.append(f"none of {', '.join(names)} can be loaded; transfers to the GPU will be slower")

    def sleep_while_waiting(self, device: int) -> None:
        """Let this process's threads sleep rather than spin while they wait for the GPU.

        To be called before anything else uses the device.
        """
        if self._library is None:
            return
        self._check("cudaSetDevice", self._library.cudaSetDevice(device))
        self._check("cudaSetDeviceFlags", self._library.cudaSetDeviceFlags(_BLOCKING_SYNC))

    def lock_pages(self, array: NDArray[np.generic]) -> None:
        """Page-lock an array's memory, so that the GPU copies it at full speed; it must live as long as the process."""
        if self._library is None:
            return
        address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._check("cudaHostRegister", self._library.cudaHostRegister(address, size, 0))

    def copy_to_device(self, address: int, array: NDArray[np.generic]) -> bool:
        """Copy a contiguous array to the GPU's memory, and wait for the end.

        Args:
            address: in the GPU's memory; at least ``array.nbytes`` bytes must be there.
            array: any dtype and shape.

        Returns:
            Whether it was copied; False where the library is missing.

        Raises:
            RuntimeError: CUDA reports an error, which may be one of the work that was queued before.
        """
        return self._copy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def copy_to_host(self, array: NDArray[np.generic], address: int) -> bool:
        """Fill a contiguous array from the GPU's memory; otherwise as :meth:`copy_to_device`."""
        return self._copy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> bool:
        if self._library is None:
            return False
        status = self._library.cudaMemcpy(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind)
        if status != _SUCCESS:
            raise RuntimeError(f"cudaMemcpy returned {status} (cudaError_t)")
        return True

    def _check(self, call: str, status: int) -> None:
        if status != _SUCCESS:
            self.problems.append(f"{call} returned {status} (cudaError_t)")
