"""ONNX Runtime between the GPU's steps: its tensors never leave the GPU, and it is not waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from pipeline import contract
from steps.gpu.device import CudaDevice
from steps.gpu.postprocess import NetworkOutputs

_WARM_UP_RUNS: Final = 3  # the first prepares the convolutions, the second is captured, the third replayed
_NO_WAIT: Final = ("disable_synchronize_execution_providers", "1")
_FUSED_FROM: Final = 16
"""From this size of batches on, convolutions are fused with their bias: compiled by cuDNN at load, 13 s a size."""

_EXACT: Final = {"use_tf32": "0"}
"""float32 is computed in float32; by default it is rounded to 10 bits of mantissa, no more than fp16 has."""

_WAYS: Final[tuple[dict[str, str], ...]] = (
    {"fuse_conv_bias": "1", "enable_cuda_graph": "1", "prefer_nhwc": "1"},
    {"enable_cuda_graph": "1", "prefer_nhwc": "1"},  # one launch; convolutions in the layout that tensor cores take
    {"prefer_nhwc": "1"},
    {},
)


class Tensor(NamedTuple):
    """A tensor on the device: element type, shape and address."""

    dtype: Any
    shape: tuple[int, ...]
    address: int


class DeviceNetwork:
    """A network on a GPU: one session per batch size, over buffers that all of them share.

    Attributes:
        images: address of uint8 [max_batch_size, H, W, 3].
        input_shape: H, W and 3.
        outputs: where candidates and prototypes are left.
        problems: what could not be had for its speed, a sentence each.
    """

    def __init__(self, path: Path, device: CudaDevice, max_batch_size: int) -> None:
        """Prepare every batch size.

        Args:
            path: the ``model.onnx``.
            device: where to.
            max_batch_size: most images that come together.

        Raises:
            Exception: ONNX Runtime cannot use the GPU (a RuntimeError that says what to install), or not for this
                network.
        """
        self._device, self._model = device, free_biases(path)
        self.problems: list[str] = []
        self._shapes = shapes = self._read_shapes()
        candidates, prototypes = shapes[contract.CANDIDATES.name], shapes[contract.PROTOTYPES.name]
        height, width, channels = shapes[contract.IMAGES.name]
        self.input_shape = height, width, channels
        self.images = device.memory(max_batch_size * prod(self.input_shape))
        self.outputs = NetworkOutputs(
            device.memory(max_batch_size * prod(candidates) * 4),
            device.memory(max_batch_size * prod(prototypes) * 2),
            *candidates,
            *prototypes,
        )
        device.clear(self.images, max_batch_size * prod(self.input_shape))
        self._runs = {size: self._prepared(size) for size in batch_sizes(max_batch_size)}

    def run(self, count: int) -> None:
        """Queue the network for the first ``count`` images; what pads the batch is whatever was there before."""
        next(run for size, run in self._runs.items() if size >= count)()

    def _read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the network's tensors, without the batch."""
        session = ort.InferenceSession(self._model, fixed_batch_size(1), providers=["CPUExecutionProvider"])
        return {node.name: tuple(node.shape[1:]) for node in (*session.get_inputs(), *session.get_outputs())}

    def _prepared(self, size: int) -> Callable[[], None]:
        """A run over the first rows of the buffers."""
        name = contract.IMAGES.name
        inputs = {name: Tensor(np.uint8, (size, *self._shapes[name]), self.images)}
        outputs = {
            name: Tensor(dtype, (size, *self._shapes[name]), address)
            for name, dtype, address in (
                (contract.CANDIDATES.name, np.float32, self.outputs.candidates),
                (contract.PROTOTYPES.name, np.float16, self.outputs.prototypes),
            )
        }
        run, problems = fastest_run(self._model, self._device, size, inputs, outputs)
        self.problems += problems
        return run


def fastest_run(
    model: bytes, device: CudaDevice, size: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> tuple[Callable[[], None], list[str]]:
    """What queues a network, in the fastest way that it takes; and why not in a faster one, a sentence each.

    Args:
        model: serialized ONNX.
        device: where to.
        size: of the batch.
        inputs: on the device; those that the network does not have are ignored.
        outputs: on the device, all that it has.

    Raises:
        Exception: it does not run at all; of ONNX Runtime's own types.
    """
    problems: list[str] = []
    for way in _WAYS[0 if size >= _FUSED_FROM else 1 :]:
        try:
            run = _bound(model, device, size, way, inputs, outputs)
            for _ in range(_WARM_UP_RUNS):
                run()
                device.wait()
        except Exception as error:  # ONNX Runtime raises types of its own
            if way == _WAYS[-1]:
                raise
            problems.append(f"batches of {size} do not run with {way}: {str(error)[:500]}")
        else:
            return run, problems
    raise AssertionError


def _bound(
    model: bytes,
    device: CudaDevice,
    size: int,
    way: dict[str, str],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> Callable[[], None]:
    options = {
        **way,
        "user_compute_stream": str(device.stream),
        "arena_extend_strategy": "kSameAsRequested",  # each session has an arena
    }
    session = cuda_session(model, device.number, size, options)
    binding = session.io_binding()
    for node in session.get_inputs():
        binding.bind_input(node.name, "cuda", device.number, *inputs[node.name])
    for name, tensor in outputs.items():
        binding.bind_output(name, "cuda", device.number, *tensor)
    run_options = ort.RunOptions()
    run_options.add_run_config_entry(*_NO_WAIT)

    def run() -> None:
        session.run_with_iobinding(binding, run_options)

    return run


def free_biases(path: Path) -> bytes:
    """A network whose transposed convolutions have their bias behind them: fused, ONNX Runtime 1.30 fails on it.

    ("For dgrad node, output dimension inferencing is not possible.")
    """
    model = onnx.load(path)
    constants = {constant.name: constant for constant in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ConvTranspose" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        bias = numpy_helper.to_array(constants[node.input.pop()]).reshape(-1, 1, 1)
        name, output = f"{node.name or node.output[0]}/free_bias", node.output[0]
        node.output[0] = f"{name}/before"
        model.graph.initializer.append(numpy_helper.from_array(bias, name))
        nodes.append(helper.make_node("Add", [node.output[0], name], [output], f"{name}/add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Sizes that batches are padded to: powers of two, and the largest.

    The CUDA provider prepares its convolutions anew whenever a session's batch size changes, which takes seconds. So
    every size has its own session. Padding costs the GPU less than a factor of two, and nothing when batches are
    full.
    """
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size}; allowed: 1 or more")
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length()) if 1 << exponent < max_batch_size]
    return (*powers, max_batch_size)


def cuda_session(model: bytes, device: int, batch_size: int, options: Mapping[str, str]) -> Any:
    """A session of the CUDA provider.

    Args:
        model: serialized ONNX.
        device: number of the GPU.
        batch_size: the only one that the session will get.
        options: of the provider.

    Raises:
        RuntimeError: this ONNX Runtime has no CUDA provider, or it cannot be used here.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError(
            f"this ONNX Runtime has the providers {', '.join(ort.get_available_providers())}; the profile cuda needs "
            "onnxruntime-gpu in place of onnxruntime"
        )
    session_options = fixed_batch_size(batch_size)
    session_options.intra_op_num_threads = 1  # what runs on the CPU is small
    session = ort.InferenceSession(
        model,
        session_options,
        providers=[("CUDAExecutionProvider", {"device_id": device, **_EXACT, **options}), "CPUExecutionProvider"],
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError(
            "ONNX Runtime could not load its CUDA provider: its CUDA and cuDNN libraries must be on LD_LIBRARY_PATH "
            "and the driver must support them"
        )
    return session


def fixed_batch_size(batch_size: int) -> ort.SessionOptions:
    """Session options for a network of this project that will see one batch size."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(contract.BATCH_DIMENSION, batch_size)
    return options
