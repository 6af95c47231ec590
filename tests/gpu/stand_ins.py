"""What cuDNN and ONNX Runtime do on a GPU, done on the host, over the emulated device's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import contract
from steps.gpu.convolutions import Operand, Task
from steps.gpu.network import Tensor


def halves(address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> NDArray[np.float16]:
    """A view of memory; strides in halves."""
    strides = strides or tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    size = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + 1
    raw = np.frombuffer((ctypes.c_uint16 * size).from_address(address), np.float16)
    return np.lib.stride_tricks.as_strided(raw, shape, [2 * stride for stride in strides])


class HostConvolutions:
    """Sums over windows, in single precision."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def prepared(self, task: Task, batch_size: int) -> Callable[[], None]:
        self.tasks.append(task)
        return lambda: self._run(task, batch_size)

    def _run(self, task: Task, batch_size: int) -> None:
        def view(one: Operand) -> NDArray[np.float16]:
            assert one.address % 16 == one.channels % 8 == one.stride % 8 == 0
            steps = one.height * one.width * one.stride, one.width * one.stride, one.stride, 1
            return halves(one.address, (batch_size, one.height, one.width, one.channels), steps)

        (high, wide), (above, beside), step = task.size, task.padding, task.stride
        weight = halves(task.weight, (task.y.channels, high, wide, task.x.channels)).astype(np.float32)
        x = np.pad(view(task.x).astype(np.float32), ((0, 0), (above, above), (beside, beside), (0, 0)))
        total = np.zeros((batch_size, task.y.height, task.y.width, task.y.channels), np.float32)
        for row in range(high):
            for column in range(wide):
                part = x[:, row::step, column::step][:, : task.y.height, : task.y.width]
                total += part @ weight[:, row, column].T
        total += halves(task.bias, (task.y.channels,))
        if task.silu:
            total /= 1 + np.exp(-total)
        if task.residual:
            total += view(task.residual)
        view(task.y)[...] = total


def host_segments(
    model: bytes, batch_size: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Callable[[], None]:
    """ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name(contract.BATCH_DIMENSION, batch_size)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def array(tensor: Tensor) -> NDArray[np.generic]:
        size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        raw = np.frombuffer((ctypes.c_uint8 * size).from_address(tensor.address), np.uint8)
        return raw.view(tensor.dtype).reshape(tensor.shape)

    def run() -> None:
        names = [node.name for node in session.get_outputs()]
        feed = {node.name: array(inputs[node.name]) for node in session.get_inputs()}
        for name, value in zip(names, session.run(names, feed), strict=True):
            array(outputs[name])[...] = value

    return run
