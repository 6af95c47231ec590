"""Encoded images to instances, one batch at a time, on one GPU: decoding, network and masks in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Detections
from pipeline.errors import ImageError
from pipeline.images import ImageLimits
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from steps.gpu.decoder import EngineDecoder, JpegDecoder
from steps.gpu.device import CudaDevice, Device
from steps.gpu.fused_network import open_network
from steps.gpu.postprocess import GpuPostprocess, NetworkOutputs
from steps.gpu.preprocess import Examined, GpuPreprocess

Places: TypeAlias = "list[Geometry | ImageError]"


class Network(Protocol):
    """A network whose tensors stay on the GPU; see :class:`steps.gpu.network.DeviceNetwork`."""

    images: int
    input_shape: tuple[int, int, int]
    outputs: NetworkOutputs

    def run(self, count: int) -> None:
        """Queue the network for the first ``count`` images."""


class GpuSegmenter:
    """The whole way of batches; for the thread that made it.

    Two batches may be under way: while one is on the GPU, the host examines and decodes the next one, or answers the
    one before.

    Args:
        device: where everything lies.
        network: of the version to serve.
        decoder: of JPEGs.
        max_batch_size: most images that come together.
        threads: of the processor, for images that the GPU does not decode.
        limits: bounds on every image.
        stretch: whether images fill the network's input.

    Attributes:
        device: see the argument; likewise the next four.
        network: likewise.
        decoder: likewise.
        max_batch_size: likewise.
        limits: likewise.
        rows: candidates that leave the network per image.
    """

    def __init__(
        self,
        device: Device,
        network: Network,
        decoder: JpegDecoder,
        max_batch_size: int,
        threads: int,
        limits: ImageLimits | None = None,
        *,
        stretch: bool = False,
    ) -> None:
        self.device, self.network, self.decoder = device, network, decoder
        self.limits, self.max_batch_size = limits or ImageLimits(), max_batch_size
        self.rows = network.outputs.rows
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lanes = [
            _Lane(
                GpuPreprocess(device, decoder, network.input_shape, max_batch_size, pool, limits, stretch=stretch),
                GpuPostprocess(device, network.outputs, max_batch_size),
            )
            for _ in range(2)
        ]

    def examine(self, data: bytes) -> Examined:
        """See :meth:`steps.gpu.preprocess.GpuPreprocess.examine`."""
        return self._lanes[0].preprocess.examine(data)

    def start(self, encoded: Sequence[Examined], parameters: Sequence[RequestParameters]) -> Batch:
        """Queue a batch of images. At most one other may be under way, and must be done with before the next one.

        Args:
            encoded: at least one and at most ``max_batch_size`` images.
            parameters: of each.
        """
        lane = self._lanes.pop(0)
        self._lanes.append(lane)
        pre = lane.preprocess

        def place(images: Sequence[int]) -> Places:
            places = pre.run([encoded[index] for index in images], self.network.images)
            self.network.run(len(images))
            return places

        return Batch(lane.postprocess, pre.images, pre.address, parameters, place)


class _Lane(NamedTuple):
    """Buffers of one batch under way."""

    preprocess: GpuPreprocess
    postprocess: GpuPostprocess


class Batch:
    """Images under way.

    Args:
        postprocess: finds the instances in what the network leaves.
        images: :data:`steps.gpu.structs.IMAGE` of the batch, in the host's memory.
        address: where they lie on the GPU once images are placed.
        parameters: of each image.
        place: given the numbers of some of the images, queues what leaves the network's outputs of them in the first
            rows of what ``postprocess`` takes; completes and uploads the first of ``images``; says where each lies in
            the network's input.
    """

    def __init__(
        self,
        postprocess: GpuPostprocess,
        images: NDArray[Any],
        address: int,
        parameters: Sequence[RequestParameters],
        place: Callable[[Sequence[int]], Places],
    ) -> None:
        self._postprocess, self._images, self._address = postprocess, images, address
        self._parameters, self._place = parameters, place
        self._places = self._start(range(len(parameters)))
        self._alone: int | None = None  # the image that the buffers hold, where they hold one of this batch

    def wait(self) -> list[tuple[Geometry, Detections] | ImageError]:
        """Where each image lies in the network's input, and what was found in it, without mask coefficients.

        An error says why it could not be decoded.
        """
        post = self._postprocess
        found = post.wait()
        self._last_scores = [post.last_score(index) for index in range(len(found))]
        self._mask_boxes = {
            index: post.mask_boxes(index) for index, asked in enumerate(self._parameters) if needs_edges(asked)
        }
        self._overflowed = post.overflowed
        return [
            place if isinstance(place, ImageError) else (place, one)
            for place, one in zip(self._places, found, strict=True)
        ]

    def masks(self, index: int, geometry: Geometry) -> list[bytes]:
        """The encoded masks of one image, in the format that was asked for it."""
        if self._overflowed and self._alone != index:
            self._start([index])
            self._postprocess.wait()
            self._alone = index
        place = 0 if self._overflowed else index
        mask_format = self._parameters[index].mask_format
        return self._postprocess.masks(place, geometry.height, geometry.width, mask_format)

    def mask_boxes(self, index: int) -> NDArray[np.float32]:
        """See :meth:`steps.gpu.postprocess.GpuPostprocess.mask_boxes`; of an image whose masks the host makes."""
        return self._mask_boxes[index]

    def last_score(self, index: int) -> float:
        """See :meth:`steps.gpu.postprocess.GpuPostprocess.last_score`."""
        return self._last_scores[index]

    def _start(self, images: Sequence[int]) -> Places:
        count = len(images)
        asked = [self._parameters[index] for index in images]
        self._images[:count] = 0
        self._postprocess.ask(self._images[:count], asked)
        places = self._place(images)
        with_edges = any(map(needs_edges, asked))
        self._postprocess.start(self._address, count, with_edges=with_edges)
        return places


def needs_edges(asked: RequestParameters) -> bool:
    """Whether the host makes the masks, from the edges of their runs; the others are done on the GPU."""
    return asked.mask_format not in ("rle", "none")


def open_segmenter(
    path: Path,
    device: int,
    max_batch_size: int,
    threads: int,
    limits: ImageLimits | None = None,
    *,
    stretch: bool = False,
) -> tuple[GpuSegmenter, list[str]]:
    """A segmenter on a GPU, every batch size prepared. To be called before anything else of the process uses the GPU.

    Args:
        path: the ``model.onnx``.
        device: number of the GPU.
        max_batch_size: see :class:`GpuSegmenter`; likewise the next two.
        threads: see there.
        limits: see there.
        stretch: see there.

    Returns:
        The segmenter, and what could not be had for its speed, a sentence each.

    Raises:
        Exception: the GPU, CuPy, nvImageCodec or ONNX Runtime cannot be used.
    """
    try:
        gpu = CudaDevice(device)
        decoder = EngineDecoder(device, gpu.stream, threads)
    except ImportError as error:
        raise RuntimeError(
            f"{error}; the profile cuda needs cupy-cuda13x 13.6, nvidia-nvimgcodec-cu13 and nvidia-nvjpeg beside "
            "onnxruntime-gpu"
        ) from error
    network = open_network(path, gpu, max_batch_size)
    segmenter = GpuSegmenter(gpu, network, decoder, max_batch_size, threads, limits, stretch=stretch)
    return segmenter, [*network.problems, *gpu.problems]
