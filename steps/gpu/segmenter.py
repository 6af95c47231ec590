"""Encoded images to instances, one batch at a time, on one GPU: decoding, network and masks in one process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

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
    ) -> None:
        self.device, self.network, self.decoder = device, network, decoder
        self.limits, self.max_batch_size = limits or ImageLimits(), max_batch_size
        self.rows = network.outputs.rows
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lanes = [
            _Lane(
                GpuPreprocess(device, decoder, network.input_shape, max_batch_size, pool, limits),
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
        return Batch(self.network, lane, encoded, parameters)


class _Lane(NamedTuple):
    """Buffers of one batch under way."""

    preprocess: GpuPreprocess
    postprocess: GpuPostprocess


class Batch:
    """Images under way."""

    def __init__(
        self, network: Network, lane: _Lane, encoded: Sequence[Examined], parameters: Sequence[RequestParameters]
    ) -> None:
        self._network, self._lane = network, lane
        self._encoded, self._parameters = encoded, parameters
        self._places = self._start(encoded, parameters)
        self._alone: int | None = None  # the image that the buffers hold, where they hold one of this batch

    def wait(self) -> list[tuple[Geometry, Detections] | ImageError]:
        """Where each image lies in the network's input, and what was found in it, without mask coefficients.

        An error says why it could not be decoded.
        """
        post = self._lane.postprocess
        found = post.wait()
        self._last_scores = [post.last_score(index) for index in range(len(found))]
        self._overflowed = post.overflowed
        return [
            place if isinstance(place, ImageError) else (place, one)
            for place, one in zip(self._places, found, strict=True)
        ]

    def masks(self, index: int, geometry: Geometry) -> list[bytes]:
        """The encoded masks of one image, in the format that was asked for it."""
        if self._overflowed and self._alone != index:
            self._start([self._encoded[index]], [self._parameters[index]])
            self._lane.postprocess.wait()
            self._alone = index
        place = 0 if self._overflowed else index
        mask_format = self._parameters[index].mask_format
        return self._lane.postprocess.masks(place, geometry.height, geometry.width, mask_format)

    def last_score(self, index: int) -> float:
        """See :meth:`steps.gpu.postprocess.GpuPostprocess.last_score`."""
        return self._last_scores[index]

    def _start(
        self, encoded: Sequence[Examined], parameters: Sequence[RequestParameters]
    ) -> list[Geometry | ImageError]:
        pre, post = self._lane
        count = len(encoded)
        pre.images[:count] = 0
        post.ask(pre.images[:count], parameters)
        places = pre.run(encoded, self._network.images)
        self._network.run(count)
        with_edges = any(asked.mask_format not in ("rle", "none") for asked in parameters)
        post.start(pre.address, count, with_edges=with_edges)
        return places


def open_segmenter(
    path: Path,
    device: int,
    max_batch_size: int,
    threads: int,
    limits: ImageLimits | None = None,
) -> tuple[GpuSegmenter, list[str]]:
    """A segmenter on a GPU, every batch size prepared. To be called before anything else of the process uses the GPU.

    Args:
        path: the ``model.onnx``.
        device: number of the GPU.
        max_batch_size: see :class:`GpuSegmenter`; likewise the next two.
        threads: see there.
        limits: see there.

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
    segmenter = GpuSegmenter(gpu, network, decoder, max_batch_size, threads, limits)
    return segmenter, [*network.problems, *gpu.problems]
