"""ONNX Runtime on an NVIDIA GPU: a session for each of a few batch sizes, replayed as a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import contract
from steps.cuda_runtime import CudaRuntime
from steps.onnx_cpu import OUTPUT_NAMES, Outputs

FAST: Final = {"prefer_nhwc": "1", "enable_cuda_graph": "1"}
"""Options of the CUDA provider: convolutions in the layout that tensor cores take, one launch for the whole network.
Not every network takes them: :func:`network_on_gpu` does without where they fail."""

_DEVICE_TYPE: Final = "cuda"
_WARM_UP_RUNS: Final = 3  # the first prepares the convolutions, the second is captured, the third replayed


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


class FixedSizeNetwork:
    """Runs images in batches of fixed sizes, over buffers that are made once.

    Args:
        open_session: makes an ``onnxruntime.InferenceSession`` of a network of this project for one batch size.
        max_batch_size: most images that come together.
        runtime: page-locks the host's buffers, and copies; None leaves both to ONNX Runtime.
        device: where ONNX Runtime keeps the tensors, and its number there.
    """

    def __init__(
        self,
        open_session: Callable[[int], Any],
        max_batch_size: int,
        runtime: CudaRuntime | None = None,
        device: tuple[str, int] = ("cpu", 0),
    ) -> None:
        self._runtime = runtime or CudaRuntime(())  # one without a library does neither
        sessions = {size: open_session(size) for size in reversed(batch_sizes(max_batch_size))}
        largest = sessions[max_batch_size]
        shapes = {node.name: tuple(node.shape[1:]) for node in (*largest.get_inputs(), *largest.get_outputs())}
        self._images = np.zeros((max_batch_size, *shapes[contract.IMAGES.name]), np.uint8)
        self._candidates = np.zeros((max_batch_size, *shapes[contract.CANDIDATES.name]), np.float32)
        self._prototypes = np.zeros((max_batch_size, *shapes[contract.PROTOTYPES.name]), np.float16)
        self._bound = {}
        for size, session in sorted(sessions.items()):
            self._bound[size] = bound = _Bound(session, self._host(size), device)
            for _ in range(_WARM_UP_RUNS):
                self._run(bound, size)
        # Last, when nothing can fail any more: locked memory must live as long as the process.
        for buffer in self._host(max_batch_size):
            self._runtime.lock_pages(buffer)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> list[Outputs]:
        """Run the network.

        Args:
            images: uint8 [1, H, W, 3] each, RGB.

        Returns:
            Outputs of one image each, in order: views that the next call overwrites.

        Raises:
            ValueError: more images than the largest batch.
            RuntimeError: the GPU failed.
        """
        count = len(images)
        bound = next((bound for size, bound in self._bound.items() if size >= count), None)
        if bound is None:
            raise ValueError(f"{count} images came together; allowed: {len(self._images)}")
        for place, image in enumerate(images):
            self._images[place] = image[0]
        self._run(bound, count)
        return list(self._views(count))

    def _views(self, count: int) -> Iterator[Outputs]:
        for place in range(count):
            yield self._candidates[place : place + 1], self._prototypes[place : place + 1]

    def _host(self, size: int) -> tuple[NDArray[Any], ...]:
        return self._images[:size], self._candidates[:size], self._prototypes[:size]

    def _run(self, bound: _Bound, count: int) -> None:
        """Run the first ``count`` images of the host's buffers; what pads the batch is whatever was there before."""
        images, *outputs = self._host(count)
        if not self._runtime.copy_to_device(bound.images.data_ptr(), images):
            bound.images.update_inplace(self._images[: bound.size])
        bound.session.run_with_iobinding(bound.binding)
        for host, value in zip(outputs, bound.outputs, strict=True):
            if not self._runtime.copy_to_host(host, value.data_ptr()):
                host[:] = value.numpy()[:count]


class _Bound:
    """A session of one batch size with its own tensors on the device, whose addresses a CUDA graph needs fixed."""

    def __init__(self, session: Any, host: Sequence[NDArray[Any]], device: tuple[str, int]) -> None:
        self.session = session
        self.size = len(host[0])
        images, *outputs = (
            ort.OrtValue.ortvalue_from_shape_and_type(buffer.shape, buffer.dtype.type, *device) for buffer in host
        )
        self.images, self.outputs = images, outputs
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(contract.IMAGES.name, images)
        for name, value in zip(OUTPUT_NAMES, outputs, strict=True):
            self.binding.bind_ortvalue_output(name, value)


def network_on_gpu(path: Path, device: int, max_batch_size: int) -> tuple[FixedSizeNetwork, list[str]]:
    """A network on a GPU, every batch size prepared.

    To be called before anything else of the process uses the GPU.

    Args:
        path: the ``model.onnx``.
        device: number of the GPU.
        max_batch_size: most images that come together.

    Returns:
        The network, and what could not be had for its speed, a sentence each.

    Raises:
        Exception: ONNX Runtime cannot use the GPU (a RuntimeError that says what to install), or not for this network.
    """
    runtime = CudaRuntime()
    runtime.sleep_while_waiting(device)
    slower = []
    for options in (dict(FAST), {}):
        open_session = functools.partial(cuda_session, path, device, options=options)
        try:
            network = FixedSizeNetwork(open_session, max_batch_size, runtime, (_DEVICE_TYPE, device))
        except Exception as error:  # ONNX Runtime raises its own types
            if not options:
                raise
            slower.append(f"the network does not run with {options}, and runs without: {str(error)[:500]}")
        else:
            break
    return network, [*slower, *runtime.problems]


def cuda_session(
    model: Path | bytes, device: int, batch_size: int | None = None, options: dict[str, str] | None = None
) -> Any:
    """A session of the CUDA provider.

    Args:
        model: the ``model.onnx``, or what is in it.
        device: number of the GPU.
        batch_size: the only one that the session will get; None leaves it open.
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
        str(model) if isinstance(model, Path) else model,
        session_options,
        providers=[("CUDAExecutionProvider", {"device_id": device, **(options or {})}), "CPUExecutionProvider"],
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError(
            "ONNX Runtime could not load its CUDA provider: its CUDA and cuDNN libraries must be on LD_LIBRARY_PATH "
            "and the driver must support them"
        )
    return session


def fixed_batch_size(batch_size: int | None) -> ort.SessionOptions:
    """Session options for a network of this project that will see one batch size; None leaves it open."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if batch_size is not None:
        options.add_free_dimension_override_by_name(contract.BATCH_DIMENSION, batch_size)
    return options
