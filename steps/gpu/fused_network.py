"""A network on a GPU as layers: convolutions by cuDNN, kernels between them, and ONNX Runtime for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline import contract
from steps.gpu import structs
from steps.gpu.convolutions import Convolutions, CudnnConvolutions, Operand, Task
from steps.gpu.device import CudaDevice, Device
from steps.gpu.head import Head
from steps.gpu.layers import ALIGNED, Convolution, Enlarge, Layer, Map, Pool, Segment, Stem, Sum, aligned
from steps.gpu.network import DeviceNetwork, Tensor, batch_sizes, fastest_run
from steps.gpu.postprocess import NetworkOutputs
from steps.gpu.reader import layers_of

Run = Callable[[], None]
_THREADS: Final = 256
_TILE: Final = 32
_RANKING: Final = 1024
_DECODING: Final = 64


class Segments(Protocol):
    """Who runs parts of the network that stay ONNX."""

    def __call__(
        self, model: bytes, batch_size: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> Run:
        """What queues it."""


class FusedNetwork:
    """A network on a GPU, for a few batch sizes over the same buffers; see :class:`steps.gpu.network.DeviceNetwork`.

    Args:
        path: the ``model.onnx``, in halves.
        device: where to.
        max_batch_size: most images that come together.
        convolutions: runs them; None: cuDNN.
        segments: runs what stays ONNX; None: ONNX Runtime on the device.

    Attributes:
        images: see there; likewise the next three.
        input_shape: see there.
        outputs: see there.
        problems: see there.
        layers: what the network was made to.

    Raises:
        Exception: layers cannot be made of the network, or cuDNN or ONNX Runtime cannot be used.
    """

    def __init__(
        self,
        path: Path,
        device: Device,
        max_batch_size: int,
        convolutions: Convolutions | None = None,
        segments: Segments | None = None,
    ) -> None:
        model = onnx.load(path)
        self.layers = layers_of(model)
        self._device, self._max_batch_size = device, max_batch_size
        self.problems: list[str] = []
        cudnn = None
        if convolutions is None:
            if not isinstance(device, CudaDevice):
                raise TypeError("cuDNN needs a CUDA device")
            convolutions = cudnn = CudnnConvolutions(device, self._after)
        shapes = {
            value.name: tuple(length.dim_value for length in value.type.tensor_type.shape.dim[1:])
            for value in (*model.graph.input, *model.graph.output)
        }
        height, width, channels = shapes[contract.IMAGES.name]
        self.input_shape = height, width, channels
        self.images = device.memory(max_batch_size * height * width * channels)
        rows, columns = shapes[contract.CANDIDATES.name]
        planes, high, wide = shapes[contract.PROTOTYPES.name]
        self.outputs = NetworkOutputs(
            device.memory(max_batch_size * rows * columns * 4),
            device.memory(max_batch_size * planes * high * wide * 2),
            rows,
            columns,
            planes,
            high,
            wide,
        )
        device.clear(self.images, max_batch_size * height * width * channels)
        self._convolutions, self._segments = convolutions, segments or self._by_onnx
        self._shapes = shapes
        self._places = self._placed()
        self._weights = {id(layer): self._constants(layer) for layer in self.layers.layers}
        self._planes: dict[tuple[int, str], int] = {}
        self._ranking = self._rank_memory(*self.layers.head) if self.layers.head else ()
        try:
            self._runs = {size: self._prepared(size) for size in batch_sizes(max_batch_size)}
        finally:
            if cudnn is not None:
                cudnn.save()
        if cudnn is not None and cudnn.apart:
            self.problems.append(f"{len(cudnn.apart)} convolutions are not fused, such as {cudnn.apart[0]}")

    def run(self, count: int) -> None:
        """Queue the network for the first ``count`` images; what pads the batch is whatever was there before."""
        for run in next(runs for size, runs in self._runs.items() if size >= count):
            run()

    # Memory

    def _placed(self) -> dict[Map, int]:
        """Addresses of the maps that have memory: used again where nothing reads them any more."""
        last: dict[Map, int] = {}
        for index, layer in enumerate(self.layers.layers):
            last |= {one.place()[0]: index for one in (*layer.inputs, *layer.outputs)}
        kept = [self.layers.prototypes, *(self.layers.head[1] if self.layers.head else ())]
        last |= {one.place()[0]: len(self.layers.layers) for one in kept if one is not None}
        places: dict[Map, int] = {}
        free: list[tuple[int, int]] = []
        sizes: dict[Map, int] = {}
        for index, layer in enumerate(self.layers.layers):
            for root in {one.place()[0]: None for one in layer.outputs}:
                if root in places:
                    continue
                size = self._max_batch_size * root.height * root.width * aligned(root.channels) * 2
                fitting = sorted(one for one in free if one[0] >= size)
                if fitting:
                    free.remove(fitting[0])
                sizes[root], places[root] = fitting[0] if fitting else (size, self._device.memory(size))
            free += [(sizes[root], places[root]) for root in places if last[root] == index]
        return places

    def _operand(self, one: Map) -> Operand:
        root, first = one.place()
        stride = aligned(root.channels)
        return Operand(self._places[root] + 2 * first, one.height, one.width, aligned(one.channels), stride)

    def _constants(self, layer: Layer) -> tuple[int, ...]:
        if not isinstance(layer, Convolution):
            return ()
        return self._uploaded(layer.weight), self._uploaded(layer.bias)

    def _uploaded(self, array: NDArray[Any]) -> int:
        staged = self._device.host(array.shape, array.dtype)
        staged[...] = array
        address = self._device.memory(staged.nbytes)
        self._device.upload(address, staged)
        self._device.wait()  # the staged copy goes
        return address

    # Runs

    def _prepared(self, size: int) -> list[Run]:
        """Everything for one batch size; what lies between two segments is recorded together."""
        queued: list[Run] = []
        for layer in self.layers.layers:
            queued += self._queued(layer, size)
        queued += [*self._prototypes(size), *self._candidates(size)]
        runs: list[Run] = []
        for by_onnx, some in groupby(queued, lambda run: isinstance(run, _ByOnnx)):
            together = list(some)
            runs += together if by_onnx else [_all(together)]
        for run in runs:
            run()
        self._device.wait()
        return [run if isinstance(run, _ByOnnx) else self._device.record(run) for run in runs]

    def _queued(self, layer: Layer, size: int) -> list[Run]:
        if isinstance(layer, Segment):
            return self._segment(layer, size)
        if isinstance(layer, Stem):
            return [self._stem(layer, size)]
        if isinstance(layer, Convolution):
            return [self._convolution(layer, size)]
        x, y = self._operand(layer.inputs[0]), self._operand(layer.outputs[0])
        if isinstance(layer, Pool):
            window = layer.size, layer.stride, layer.padding, int(layer.mean)
            arguments = *_in(x), *_out(y), *map(np.int32, (y.height, y.width, *window))
            return [self._eights("pool", arguments, y, size)]
        if isinstance(layer, Enlarge):
            arguments = *_in(x), *_out(y), np.int32(layer.factor), np.int32(layer.shuffle)
            return [self._eights("enlarge", arguments, y, size)]
        if not isinstance(layer, Sum):
            raise TypeError(f"{type(layer).__name__} is no layer")
        other = self._operand(layer.inputs[1]) if len(layer.inputs) > 1 else None
        return [self._sum(x, 0, silu=False, other=other, y=y, size=size)]

    def _stem(self, layer: Stem, size: int) -> Run:
        y = self._operand(layer.outputs[0])
        numbers = size, *self.input_shape[:2], y.height, y.width, y.stride, layer.block, layer.before
        arguments = np.uint64(self.images), np.uint64(y.address), *map(np.int32, numbers)
        threads = size * y.height * y.width
        return lambda: self._device.launch("stem", (_blocks(threads),), (_THREADS,), arguments)

    def _convolution(self, layer: Convolution, size: int) -> Run:
        x, y = self._operand(layer.inputs[0]), self._operand(layer.outputs[0])
        residual = self._operand(layer.inputs[1]) if len(layer.inputs) > 1 else None
        weight, bias = self._weights[id(layer)]
        if not layer.depthwise:
            _, high, wide, _ = layer.weight.shape
            task = Task(x, y, residual, weight, bias, (high, wide), layer.stride, layer.padding, layer.silu)
            return self._convolutions.prepared(task, size)
        arguments = (
            *_in(x),
            np.uint64(weight),
            np.uint64(bias),
            np.int32(layer.silu),
            *_other(residual),
            *_out(y),
            *map(np.int32, (y.height, y.width, *layer.weight.shape[:2], layer.stride, *layer.padding)),
        )
        return self._eights("depthwise", arguments, y, size)

    def _after(self, task: Task, size: int) -> Run:
        return self._sum(task.y, task.bias, silu=task.silu, other=task.residual, y=task.y, size=size)

    def _sum(self, x: Operand, bias: int, *, silu: bool, other: Operand | None, y: Operand, size: int) -> Run:
        arguments = *_out(x), np.uint64(bias), np.int32(silu), *_other(other), *_out(y)
        return self._eights("sum", arguments, y, size)

    def _eights(self, kernel: str, arguments: Sequence[Any], y: Operand, size: int) -> Run:
        """A kernel whose threads have 8 channels each of what it writes."""
        eights, pixels = y.channels // ALIGNED, size * y.height * y.width
        everything = *arguments, np.int32(eights), np.int64(pixels)
        return lambda: self._device.launch(kernel, (_blocks(eights * pixels),), (_THREADS,), everything)

    def _transpose(
        self, matrices: int, rows: int, columns: int, source: tuple[int, int, int], target: tuple[int, int, int]
    ) -> Run:
        """Matrices of halves from one address, apart by so many halves and with rows of so many, to another."""
        ends = [(np.uint64(one[0]), np.int64(one[1]), np.int32(one[2])) for one in (source, target)]
        arguments = *ends[0], *ends[1], np.int32(rows), np.int32(columns)
        grid = -(-columns // _TILE), -(-rows // _TILE), matrices
        return lambda: self._device.launch("transpose", grid, (_TILE, 8), arguments)

    def _to_planes(self, one: Map, address: int, size: int) -> Run:
        x, points = self._operand(one), one.height * one.width
        whole = one.channels * points
        return self._transpose(
            size, points, one.channels, (x.address, points * x.stride, x.stride), (address, whole, points)
        )

    def _from_planes(self, address: int, one: Map, size: int) -> Run:
        y, points = self._operand(one), one.height * one.width
        whole = one.channels * points
        return self._transpose(
            size, one.channels, points, (address, whole, points), (y.address, points * y.stride, y.stride)
        )

    def _segment(self, layer: Segment, size: int) -> list[Run]:
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        before, behind = [], []
        for names, maps, tensors in (
            (layer.input_names, layer.inputs, inputs),
            (layer.output_names, layer.outputs, outputs),
        ):
            for name, one in zip(names, maps, strict=False):
                address = self._plane(id(layer), name, one)
                tensors[name] = Tensor(np.float16, (size, one.channels, one.height, one.width), address)
                if tensors is inputs:
                    before.append(self._to_planes(one, address, size))
                else:
                    behind.append(self._from_planes(address, one, size))
        inputs[contract.IMAGES.name] = Tensor(np.uint8, (size, *self.input_shape), self.images)
        for name, dtype, address in (
            (contract.CANDIDATES.name, np.float32, self.outputs.candidates),
            (contract.PROTOTYPES.name, np.float16, self.outputs.prototypes),
        ):
            if name in layer.output_names:
                outputs[name] = Tensor(dtype, (size, *self._shapes[name]), address)
        run: Run = _ByOnnx(self._segments(layer.model, size, inputs, outputs))
        return [*before, run, *behind]

    def _plane(self, layer: int, name: str, one: Map) -> int:
        key = layer, name
        if key not in self._planes:
            self._planes[key] = self._device.memory(self._max_batch_size * one.channels * one.height * one.width * 2)
        return self._planes[key]

    def _by_onnx(self, model: bytes, size: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Run:
        if not isinstance(self._device, CudaDevice):
            raise TypeError("ONNX Runtime needs a CUDA device")
        run, problems = fastest_run(model, self._device, size, inputs, outputs)
        self.problems += problems
        return run

    # The network's ends

    def _prototypes(self, size: int) -> list[Run]:
        if self.layers.prototypes is None:
            return []
        return [self._to_planes(self.layers.prototypes, self.outputs.prototypes, size)]

    def _candidates(self, size: int) -> list[Run]:
        if self.layers.head is None:
            return []
        head, _ = self.layers.head
        levels, keys, kinds, ranked = (np.uint64(address) for address in self._ranking)
        points, rows, candidates = np.int32(head.points), np.int32(head.rows), np.uint64(self.outputs.candidates)
        launch, wide = self._device.launch, (_THREADS,)
        score = levels, points, np.int32(head.classes), keys, kinds
        decode = levels, ranked, kinds, points, rows, np.int32(head.bins), np.int32(head.coefficients), candidates
        return [
            lambda: launch("scores", (_blocks(head.points), size), wide, score),
            lambda: launch("rank", (size,), (_RANKING,), (keys, points, rows, ranked)),
            lambda: launch("decode", (-(-head.rows // _DECODING), size), (_DECODING,), decode),
        ]

    def _rank_memory(self, head: Head, maps: Sequence[Map]) -> tuple[int, ...]:
        """Addresses of the levels' table, the keys and classes of all points, and the keys of the rows."""
        table = np.zeros(len(head.levels), structs.LEVEL)
        first = 0
        for index, (height, width, stride) in enumerate(head.levels):
            operands = [self._operand(one) for one in maps[3 * index : 3 * index + 3]]
            numbers = width, height * width, first, stride, 0
            table[index] = (*(one.address for one in operands), *(one.stride for one in operands), *numbers)
            first += height * width
        many, memory = self._max_batch_size, self._device.memory
        keys, kinds = memory(many * head.points * 8), memory(many * head.points * 4)
        return self._uploaded(table), keys, kinds, memory(many * head.rows * 8)


class _ByOnnx:
    """A run that is not recorded: ONNX Runtime records it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self) -> None:
        self._run()


def open_network(path: Path, device: CudaDevice, max_batch_size: int) -> FusedNetwork | DeviceNetwork:
    """The fastest engine that takes a network: layers, or else ONNX Runtime for all of it.

    Args:
        path: the ``model.onnx``.
        device: where to.
        max_batch_size: most images that come together.

    Raises:
        Exception: see :class:`steps.gpu.network.DeviceNetwork`.
    """
    try:
        return FusedNetwork(path, device, max_batch_size)
    except Exception as error:  # of cuDNN, CuPy and ONNX Runtime
        problem = f"ONNX Runtime alone runs the network, slower than fused convolutions: {str(error)[:500]}"
    network = DeviceNetwork(path, device, max_batch_size)
    network.problems.append(problem)
    return network


def _all(runs: Sequence[Run]) -> Run:
    def run() -> None:
        for one in runs:
            one()

    return run


def _blocks(threads: int) -> int:
    return -(-threads // _THREADS)


def _in(x: Operand) -> tuple[Any, ...]:
    return np.uint64(x.address), np.int32(x.stride), np.int32(x.height), np.int32(x.width)


def _out(y: Operand) -> tuple[Any, ...]:
    return np.uint64(y.address), np.int32(y.stride)


def _other(one: Operand | None) -> tuple[Any, ...]:
    return _out(one) if one else (np.uint64(0), np.int32(0))
