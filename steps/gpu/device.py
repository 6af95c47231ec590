"""One GPU as a process sees it: a stream, memory, and the project's kernels, compiled at load by NVRTC through CuPy."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

KERNELS: Final = Path(__file__).parent / "kernels"
LAYER_KERNELS: Final = ("stem", "sum", "pool", "enlarge", "depthwise", "transpose", "scores", "rank", "decode")
_FILES: Final = {
    "letterbox": "letterbox.cu",
    "suppress": "suppress.cu",
    "masks": "masks.cu",
    "deliver": "masks.cu",
    **dict.fromkeys(LAYER_KERNELS, "layers.cu"),
}
_OPTIONS: Final = ("--std=c++17", "--fmad=false")  # without fused multiply-add, comparisons fall as NumPy's do
_THREADS: Final = 256  # THREADS in structs.cuh
_RUNTIMES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_BLOCKING_SYNC: Final = 4  # cudaDeviceScheduleBlockingSync, driver_types.h


class Device(Protocol):
    """What the steps need of a GPU; everything is done in the order of the calls, and without waiting."""

    multiprocessors: int

    def memory(self, size: int) -> int:
        """Address of so many bytes of the GPU, 16-byte aligned, kept as long as the device is."""

    def host(self, shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array in the host's page-locked memory, which kernels may write to."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array of page-locked memory to the GPU."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the GPU, and wait for it."""

    def copy(self, address: int, source: int, size: int) -> None:
        """Copy so many bytes to the GPU, from any memory."""

    def share(self, address: int, shape: tuple[int, ...], dtype: Any) -> Callable[[int, int], Any]:
        """What gives some rows of an array on the GPU, from one on and so many, as DLPack."""

    def received(self, capsule: Any) -> tuple[int, Any]:
        """Address of an array that came as DLPack, and what keeps it."""

    def clear(self, address: int, size: int) -> None:
        """Set so many bytes of the GPU to 0."""

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """Start a kernel; arguments are NumPy scalars of the kernel's types, addresses ``np.uint64``."""

    def record(self, queue: Callable[[], None]) -> Callable[[], None]:
        """What asks for the same again, at once. ``queue`` may only start kernels, and has run before."""

    def mark(self) -> Any:
        """A mark behind everything that was asked for so far."""

    def wait(self, mark: Any = None) -> None:
        """Sleep until everything before a mark is done, or simply everything."""


def source_of(kernel: str) -> str:
    """CUDA C++ of a kernel's file, with the structures that it shares with the host in front."""
    return "\n".join((KERNELS / name).read_text(encoding="utf-8") for name in ("structs.cuh", _FILES[kernel]))


class CudaDevice:
    """A :class:`Device`; for the thread that made it.

    Attributes:
        number: of the GPU.
        name: likewise.
        stream: address of the ``cudaStream_t`` on which everything runs.
        multiprocessors: of the GPU.
        problems: what could not be had for its speed, a sentence each.
    """

    def __init__(self, number: int) -> None:
        """Open the GPU and compile the kernels, or take them from CuPy's cache.

        To be made before anything else of the process uses the GPU.

        Raises:
            ImportError: CuPy is missing.
            Exception: there is no such GPU, or its driver is too old; of CuPy's own types.
        """
        self.problems = sleep_while_waiting(number)
        _make_cache_writable()
        import cupy

        self.number = number
        self.name = str(cupy.cuda.runtime.getDeviceProperties(number)["name"], "ascii", "replace")
        self._cupy = cupy
        cupy.cuda.Device(number).use()
        self.multiprocessors = int(cupy.cuda.Device(number).attributes["MultiProcessorCount"])
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stream.use()
        self.stream = int(self._stream.ptr)
        modules = {
            file: cupy.RawModule(code=source_of(kernel), options=_OPTIONS)
            for file, kernel in {file: kernel for kernel, file in _FILES.items()}.items()
        }
        self._kernels = {kernel: modules[file].get_function(kernel) for kernel, file in _FILES.items()}
        self._kept: list[Any] = []

    def memory(self, size: int) -> int:
        """See :class:`Device`."""
        allocated = self._cupy.cuda.alloc(size)
        self._kept.append(allocated)
        return int(allocated.ptr)

    def host(self, shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See :class:`Device`."""
        dimensions = (shape,) if isinstance(shape, int) else shape
        count = int(np.prod(dimensions))
        # Rounded up, for kernels write 16 bytes at a time.
        allocated = self._cupy.cuda.alloc_pinned_memory((count * np.dtype(dtype).itemsize + 15) // 16 * 16)
        array = np.frombuffer(allocated, dtype, count).reshape(dimensions)
        array[...] = np.zeros((), dtype)
        return array

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See :class:`Device`."""
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(address, array.ctypes.data, array.nbytes, runtime.memcpyHostToDevice, self.stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        """See :class:`Device`."""
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(array.ctypes.data, address, array.nbytes, runtime.memcpyDeviceToHost, self.stream)
        self.wait()

    def copy(self, address: int, source: int, size: int) -> None:
        """See :class:`Device`."""
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(address, source, size, runtime.memcpyDefault, self.stream)

    def share(self, address: int, shape: tuple[int, ...], dtype: Any) -> Callable[[int, int], Any]:
        """See :class:`Device`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._cupy.cuda.UnownedMemory(address, size, self)
        array = self._cupy.ndarray(shape, dtype, self._cupy.cuda.MemoryPointer(memory, 0))
        # -1: nothing is waited for, which is up to the caller.
        return lambda first, count: array[first : first + count].__dlpack__(stream=-1)

    def received(self, capsule: Any) -> tuple[int, Any]:
        """See :class:`Device`."""
        array = self._cupy.from_dlpack(capsule)
        return int(array.data.ptr), array

    def clear(self, address: int, size: int) -> None:
        """See :class:`Device`."""
        self._cupy.cuda.runtime.memsetAsync(address, 0, size, self.stream)

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """See :class:`Device`."""
        self._kernels[kernel](grid, block, tuple(arguments), shared_mem=shared)

    def record(self, queue: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Device`; a CUDA graph."""
        self._stream.begin_capture()
        try:
            queue()
        finally:
            graph = self._stream.end_capture()
        return lambda: graph.launch(self._stream)

    def milliseconds(self, queue: Callable[[], None], repeats: int = 5) -> float:
        """What one run of kernels takes on the GPU, after a first one that is not measured."""
        queue()
        begin, end = (self._cupy.cuda.Event() for _ in range(2))
        begin.record(self._stream)
        for _ in range(repeats):
            queue()
        end.record(self._stream)
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(begin, end)) / repeats

    def mark(self) -> Any:
        """See :class:`Device`."""
        event = self._cupy.cuda.Event(block=True, disable_timing=True)
        event.record(self._stream)
        return event

    def wait(self, mark: Any = None) -> None:
        """See :class:`Device`."""
        (mark or self.mark()).synchronize()


def sleep_while_waiting(number: int, names: Sequence[str] = _RUNTIMES) -> list[str]:
    """Let this process's threads sleep rather than spin while they wait for a GPU that nothing has used yet.

    CuPy does not offer it.

    Args:
        number: of the GPU.
        names: of the CUDA runtime's library, the first that is there counts.

    Returns:
        Why they will spin, a sentence; nothing where they will sleep.
    """
    for name in names:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        status = runtime.cudaSetDevice(number) or runtime.cudaSetDeviceFlags(_BLOCKING_SYNC)
        return [f"threads spin while they wait for the GPU: {name} returned {status} (cudaError_t)"] if status else []
    return [f"threads spin while they wait for the GPU: none of {', '.join(names)} can be loaded"]


def _make_cache_writable() -> None:
    """Compiled kernels go where CuPy says, or, where nothing can be written, stay in memory."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path("~/.cupy/kernel_cache").expanduser())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
