"""Convolutions by cuDNN, each with its bias, SiLU and residual in one kernel."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

from base.files import write_atomically
from steps.gpu.device import CudaDevice

_TRIED_PLANS: Final = 2  # a tenth of a second each; the first alone costs 5 to 10 % of images/s on an H100
_WORKSPACE: Final = 64 << 20  # bytes that a plan may use


class Operand(NamedTuple):
    """A map in memory.

    Attributes:
        address: of its first channel.
        height: in pixels; likewise the width.
        width: see there.
        channels: with what pads them.
        stride: channels from pixel to pixel.
    """

    address: int
    height: int
    width: int
    channels: int
    stride: int


@dataclass(frozen=True)
class Task:
    """A convolution for one batch size.

    Attributes:
        x: what it reads.
        y: what it writes.
        residual: what is added last; None: nothing.
        weight: address of halves [outputs, size[0], size[1], inputs].
        bias: address of halves [outputs].
        size: of the window.
        stride: of both axes.
        padding: of both axes.
        silu: whether.
    """

    x: Operand
    y: Operand
    residual: Operand | None
    weight: int
    bias: int
    size: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    silu: bool


class Convolutions(Protocol):
    """Who runs them."""

    def prepared(self, task: Task, batch_size: int) -> Callable[[], None]:
        """What queues a convolution."""


class _Plan(NamedTuple):
    graph: Any
    tensors: Mapping[str, Any]
    number: int


class CudnnConvolutions:
    """Fused graphs of NVIDIA's ``cudnn`` package, on the stream of a device.

    The fastest of a few plans is taken; which one that was is kept on disk, in the folder of the compiled kernels.

    Args:
        device: where.
        after: queues bias, SiLU and residual of a task whose convolution wrote ``y``; for what cuDNN does not fuse.

    Attributes:
        apart: convolutions that are not fused, a sentence each.
    """

    def __init__(self, device: CudaDevice, after: Callable[[Task, int], Callable[[], None]]) -> None:
        """Open cuDNN.

        Raises:
            ImportError: the package is missing.
            Exception: libcudnn cannot be loaded; of several types.
        """
        try:
            import cudnn
        except ImportError as error:
            raise ImportError(f"{error}; fused convolutions need nvidia-cudnn-frontend 1.14 and cuDNN 9") from error

        self._cudnn, self._device, self._after = cudnn, device, after
        self._handle = cudnn.create_handle()
        cudnn.set_stream(handle=self._handle, stream=device.stream)
        self._workspace = device.memory(_WORKSPACE)
        self._plans: dict[str, _Plan] = {}
        self._choices = Choices(f"{device.name} cudnn {cudnn.backend_version()}")
        self.apart: list[str] = []

    def prepared(self, task: Task, batch_size: int) -> Callable[[], None]:
        """See :class:`Convolutions`.

        Raises:
            Exception: cuDNN has no plan even for the convolution alone.
        """
        try:
            return self._run(task, batch_size, fused=True)
        except Exception as error:  # of several types
            self.apart.append(f"{task.size} {task.x[1:]} to {task.y[1:]}: {str(error)[:200]}")
        convolution, after = self._run(task, batch_size, fused=False), self._after(task, batch_size)

        def run() -> None:
            convolution()
            after()

        return run

    def save(self) -> None:
        """Keep the choices for other processes, which may be waiting for them."""
        self._choices.save()

    def _run(self, task: Task, batch_size: int, fused: bool) -> Callable[[], None]:
        shapes = [one[1:] if one else None for one in (task.x, task.y, task.residual)]
        key = f"{batch_size} {shapes} {task.size} {task.stride} {task.padding} {task.silu} {fused}"
        if key not in self._plans:
            graph, tensors = self._graph(task, batch_size, fused)
            self._plans[key] = _Plan(graph, tensors, self._choose(key, graph, self._pack(task, tensors)))
        plan = self._plans[key]
        pack = {tensor.get_uid(): address for tensor, address in self._pack(task, plan.tensors).items()}

        def run() -> None:
            plan.graph.execute_plan_at_index(pack, self._workspace, plan.number, handle=self._handle)

        return run

    def _graph(self, task: Task, batch_size: int, fused: bool) -> tuple[Any, dict[str, Any]]:
        kinds = self._cudnn.data_type
        graph = self._cudnn.pygraph(
            io_data_type=kinds.HALF,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )
        x, y, (high, wide) = task.x, task.y, task.size

        def tensor(operand: Operand) -> Any:
            dimensions, strides = _layout(operand, batch_size)
            return graph.tensor(dim=dimensions, stride=strides, data_type=kinds.HALF)

        tensors = {
            "x": tensor(x),
            "weight": graph.tensor(
                dim=[y.channels, x.channels, high, wide],
                stride=[high * wide * x.channels, 1, wide * x.channels, x.channels],
                data_type=kinds.HALF,
            ),
        }
        result = graph.conv_fprop(
            image=tensors["x"],
            weight=tensors["weight"],
            padding=list(task.padding),
            stride=[task.stride, task.stride],
            dilation=[1, 1],
        )
        if fused:
            count = y.channels
            tensors["bias"] = graph.tensor(dim=[1, count, 1, 1], stride=[count, 1, count, count], data_type=kinds.HALF)
            result = graph.bias(input=result, bias=tensors["bias"])
            if task.silu:
                result = graph.swish(input=result, swish_beta=1.0)
            if task.residual:
                tensors["residual"] = tensor(task.residual)
                result = graph.add(a=result, b=tensors["residual"])
        dimensions, strides = _layout(y, batch_size)
        result.set_output(True)
        result.set_data_type(kinds.HALF)
        result.set_dim(dimensions)
        result.set_stride(strides)
        tensors["y"] = result
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        return graph, tensors

    def _choose(self, key: str, graph: Any, pack: Mapping[Any, int]) -> int:
        """The fastest of the plans that the heuristics give first, built."""
        count = graph.get_execution_plan_count()
        known = self._choices.get(key)
        if known is not None and known < count:
            graph.build_plan_at_index(known)
            if graph.get_workspace_size_plan_at_index(known) <= _WORKSPACE:
                return known
        times: list[tuple[float, int]] = []
        problem: Exception | None = None
        for index in range(count):
            if len(times) == _TRIED_PLANS:
                break
            try:
                graph.build_plan_at_index(index)
                if graph.get_workspace_size_plan_at_index(index) > _WORKSPACE:
                    continue

                def run(index: int = index) -> None:
                    graph.execute_plan_at_index(pack, self._workspace, index, handle=self._handle)

                times.append((self._device.milliseconds(run), index))
            except Exception as error:  # a plan that this GPU does not run
                problem = error
        if not times:
            raise problem or RuntimeError(f"cuDNN has no plan within {_WORKSPACE} bytes")
        best = min(times)[1]
        self._choices.set(key, best)
        return best

    def _pack(self, task: Task, tensors: Mapping[str, Any]) -> dict[Any, int]:
        addresses = {"x": task.x.address, "weight": task.weight, "bias": task.bias, "y": task.y.address}
        if task.residual:
            addresses["residual"] = task.residual.address
        return {tensor: addresses[name] for name, tensor in tensors.items()}


def _layout(operand: Operand, batch_size: int) -> tuple[list[int], list[int]]:
    """Dimensions in cuDNN's order, and the strides of channels that lie side by side."""
    _, height, width, channels, stride = operand
    return [batch_size, channels, height, width], [height * width * stride, 1, width * stride, stride]


class Choices:
    """Numbers of plans, in a file; without one where nothing can be written.

    One process at a time decides, until it saves; the others wait, and take what it decided. So they do not disturb
    what it measures, and all compute alike.
    """

    def __init__(self, where: str) -> None:
        folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path("~/.cupy/kernel_cache").expanduser())
        self._path = folder / f"plans-{''.join(letter if letter.isalnum() else '-' for letter in where)}.json"
        self._known: dict[str, int] = {}
        self._changed = False
        self._lock: IO[bytes] | None = None
        self._read()

    def get(self, key: str) -> int | None:
        """The number decided before; None makes this process the one that decides."""
        if key not in self._known and self._lock is None:
            with contextlib.suppress(OSError):
                lock = self._path.with_suffix(".lock").open("ab")
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._lock = lock
            self._read()
            if key in self._known:
                self._release()
        return self._known.get(key)

    def set(self, key: str, index: int) -> None:
        """Decide."""
        self._known[key], self._changed = index, True

    def save(self) -> None:
        """Keep what was decided; others may decide now."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps(self._known))
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._known |= json.loads(self._path.read_text(encoding="utf-8"))
