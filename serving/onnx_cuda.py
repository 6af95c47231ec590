"""ONNX Runtime on an NVIDIA GPU: batches of a few fixed sizes, in and out of page-locked memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import contract
from serving.onnx_cpu import OUTPUT_NAMES, Outputs


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Sizes that batches are padded to: powers of two, and the largest.

    The CUDA provider prepares itself for about a second when it first sees a batch size. A few sizes can be prepared
    before the first request; padding costs the GPU less than a factor of two, and nothing when batches are full.
    """
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size}; allowed: 1 or more")
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length()) if 1 << exponent < max_batch_size]
    return (*powers, max_batch_size)


class FixedSizeNetwork:
    """Runs images in batches of fixed sizes, over buffers that are made once.

    Args:
        session: an ``onnxruntime.InferenceSession`` of a network of this project.
        max_batch_size: most images that come together.
        page_lock: called with each buffer, once.
    """

    def __init__(self, session: Any, max_batch_size: int, page_lock: Any = None) -> None:
        self._session = session
        self._sizes = batch_sizes(max_batch_size)
        shape = [int(size) for size in session.get_inputs()[0].shape[1:]]
        self._images = np.zeros((max_batch_size, *shape), np.uint8)
        self._candidates, self._prototypes = (
            np.zeros((max_batch_size, *(int(size) for size in output.shape[1:])), dtype)
            for output, dtype in zip(_outputs(session), (np.float32, np.float16), strict=True)
        )
        if page_lock is not None:
            for buffer in (self._images, self._candidates, self._prototypes):
                page_lock(buffer)
        self._bindings = {size: self._bind_outputs(size) for size in self._sizes}
        for size in self._sizes:  # the first runs of each size prepare it
            for _ in range(2):
                self._run(size)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> list[Outputs]:
        """Run the network.

        Args:
            images: uint8 [1, H, W, 3] each, RGB.

        Returns:
            Outputs of one image each, in order: views that the next call overwrites.

        Raises:
            ValueError: more images than the largest batch.
        """
        count = len(images)
        size = next((size for size in self._sizes if size >= count), None)
        if size is None:
            raise ValueError(f"{count} images came together; allowed: {self._sizes[-1]}")
        for place, image in enumerate(images):
            self._images[place] = image[0]
        self._run(size)
        return list(self._views(count))

    def _views(self, count: int) -> Iterator[Outputs]:
        for place in range(count):
            yield self._candidates[place : place + 1], self._prototypes[place : place + 1]

    def _run(self, size: int) -> None:
        binding, images = self._bindings[size], self._images[:size]
        # ONNX Runtime copies an input to the GPU when it is bound, not when the session runs: bind it every time.
        binding.bind_input(contract.IMAGES.name, "cpu", 0, np.uint8, images.shape, images.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _bind_outputs(self, size: int) -> Any:
        binding = self._session.io_binding()
        for name, buffer in zip(OUTPUT_NAMES, (self._candidates, self._prototypes), strict=True):
            part = buffer[:size]
            binding.bind_output(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        return binding


def cuda_session(path: Path, device: int) -> Any:
    """A session of the CUDA provider.

    Raises:
        RuntimeError: this ONNX Runtime has no CUDA provider, or it cannot be used here.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError(
            f"this ONNX Runtime has the providers {', '.join(ort.get_available_providers())}; the profile cuda needs "
            "onnxruntime-gpu in place of onnxruntime"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # what runs on the CPU is small
    session = ort.InferenceSession(
        str(path), options, providers=[("CUDAExecutionProvider", {"device_id": device}), "CPUExecutionProvider"]
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError(
            "ONNX Runtime could not load its CUDA provider: its CUDA and cuDNN libraries must be on LD_LIBRARY_PATH "
            "and the driver must support them"
        )
    return session


def _outputs(session: Any) -> list[Any]:
    by_name = {output.name: output for output in session.get_outputs()}
    return [by_name[name] for name in OUTPUT_NAMES]
