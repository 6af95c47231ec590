"""Encoded images to letterboxed pixels in the GPU's memory: :func:`pipeline.preprocess.preprocess` for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.errors import ImageError
from pipeline.image_structure import ImageHeader
from pipeline.images import ImageLimits, check_body, check_header
from pipeline.letterbox import Geometry
from pipeline.preprocess import preprocess
from steps.gpu.decoder import JpegDecoder, Picture
from steps.gpu.device import Device
from steps.gpu.jpeg import engine_takes
from steps.gpu.structs import IMAGE

_PIXELS_AT_ONCE: Final = 1 << 26  # decoded together: 200 MB of the GPU's memory, as the largest picture allowed takes
STRIDE: Final = 4.0
"""Network pixels per prototype cell, as :func:`pipeline.masks.mask_runs` takes it."""

_BLOCK: Final = (32, 8, 1)

# EXIF orientation to (transposed, flip_x, flip_y), as pipeline.images turns and flips: transposed first.
_TURNS: Final = {
    1: (0, 0, 0),
    2: (0, 1, 0),
    3: (0, 1, 1),
    4: (0, 0, 1),
    5: (1, 0, 0),
    6: (1, 1, 0),
    7: (1, 1, 1),
    8: (1, 0, 1),
}


@dataclass(frozen=True)
class Examined:
    """An encoded image within the limits.

    Attributes:
        data: as it came.
        header: of it.
        jpeg: what the GPU is given; None where the CPU decodes it.
    """

    data: bytes
    header: ImageHeader
    jpeg: bytes | None

    @property
    def pixels(self) -> int:
        """Of the whole image."""
        return self.header.width * self.header.height


class GpuPreprocess:
    """Decodes and letterboxes batches of encoded images.

    Baseline JPEGs are decoded by the GPU. All others, and those that it fails on, take the CPU's way at the same time,
    with its answers and refusals.

    Args:
        device: where to.
        decoder: of JPEGs.
        input_shape: height, width and channels of the network's input.
        max_batch_size: most images that come together.
        pool: threads for what the GPU does not decode.
        limits: bounds on every image.
        stretch: whether they fill the network's input.

    Attributes:
        images: :data:`steps.gpu.structs.IMAGE` [max_batch_size], what the kernels know of each image of a batch.
        limits: see the argument.
    """

    def __init__(
        self,
        device: Device,
        decoder: JpegDecoder,
        input_shape: tuple[int, int, int],
        max_batch_size: int,
        pool: ThreadPoolExecutor,
        limits: ImageLimits | None = None,
        *,
        stretch: bool = False,
    ) -> None:
        self._device, self._decoder, self.limits = device, decoder, limits or ImageLimits()
        self._shape, self._stretch = input_shape, stretch
        self._row_bytes = int(np.prod(input_shape))
        self._host_pixels = device.host((max_batch_size, *input_shape), np.uint8)
        self._pool = pool
        self.images, self._late = device.host(max_batch_size, IMAGE), device.host(max_batch_size, IMAGE)
        self._address = device.memory(self.images.nbytes)

    @property
    def address(self) -> int:
        """Where :attr:`images` lies on the GPU after :meth:`run`."""
        return self._address

    def examine(self, data: bytes) -> Examined:
        """Check an encoded image, and say who decodes it. What the CPU decodes is checked whole when it does.

        Raises:
            ImageError: see :func:`pipeline.images.check_image`.
        """
        header = check_header(data, self.limits)
        jpeg = check_body(data, header, self.limits) if engine_takes(data, header) else None
        return Examined(data, header, jpeg)

    def run(self, encoded: Sequence[Examined], pixels: int) -> list[Geometry | ImageError]:
        """Decode and letterbox; the end is not waited for.

        Before, the caller has set the first of :attr:`images` to 0, but for what is asked of each (see
        :mod:`steps.gpu.postprocess`). Until everything on the device is done it must leave them alone.

        Args:
            encoded: the images.
            pixels: address on the GPU of uint8 [batch, H, W, 3], whose first rows are overwritten.

        Returns:
            Where each image lies in its row; or why it was refused, and its row holds what it held.
        """
        results: dict[int, Geometry | ImageError] = {}
        jpegs = {index: image.jpeg for index, image in enumerate(encoded) if image.jpeg is not None}
        on_cpu = {index: self._on_cpu(index, image) for index, image in enumerate(encoded) if image.jpeg is None}
        chunks = list(_chunks({index: encoded[index].pixels for index in jpegs}))
        for chunk in chunks:
            self._pictures = self._decoder.decode([jpegs[index] for index in chunk])
            for index, picture in zip(chunk, self._pictures, strict=True):
                if picture is None:
                    on_cpu[index] = self._on_cpu(index, encoded[index])
                else:
                    results[index] = self._describe(index, picture, encoded[index].header.orientation)
            self._letterbox(len(encoded), pixels)
            if chunk is not chunks[-1]:
                self._device.wait()  # before the memory of its pictures is used again
                self.images["pixels"][chunk] = 0
        for index, future in on_cpu.items():
            try:
                results[index] = future.result()
            except ImageError as error:
                results[index] = error
        self._finish(results, on_cpu, pixels, sent=bool(chunks))
        return [results[index] for index in range(len(encoded))]

    def _finish(
        self, results: dict[int, Geometry | ImageError], on_cpu: Iterable[int], pixels: int, *, sent: bool
    ) -> None:
        """Bring what the CPU decoded to the GPU, and what the kernels behind need to know of it."""
        late = [index for index in results if index in on_cpu or isinstance(results[index], ImageError)]
        if sent and not late:
            return
        self._late[: len(results)] = self.images[: len(results)]  # the others are being copied still
        for index in late:
            result = results[index]
            if isinstance(result, ImageError):
                self._late[index]["max_detections"] = 0
            else:
                describe_geometry(self._late[index], result)
                self._device.upload(pixels + index * self._row_bytes, self._host_pixels[index])
        self._device.upload(self._address, self._late[: len(results)])

    def _on_cpu(self, index: int, image: Examined) -> Future[Geometry]:
        return self._pool.submit(preprocess, image.data, self._host_pixels[index], self.limits, stretch=self._stretch)

    def _describe(self, index: int, picture: Picture, orientation: int) -> Geometry:
        turn = _TURNS[orientation]
        height, width = (picture.width, picture.height) if turn[0] else (picture.height, picture.width)
        geometry = Geometry.fit(height, width, *self._shape[:2], stretch=self._stretch)
        image: Any = self.images[index]
        image["pixels"], image["pitch"] = picture.address, picture.pitch
        image["transposed"], image["flip_x"], image["flip_y"] = turn
        describe_geometry(image, geometry)
        return geometry

    def _letterbox(self, count: int, pixels: int) -> None:
        height, width, _ = self._shape
        self._device.upload(self._address, self.images[:count])
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), count)
        arguments = (np.uint64(self._address), np.uint64(pixels), np.int32(height), np.int32(width))
        self._device.launch("letterbox", grid, _BLOCK, arguments)


def describe_geometry(image: Any, geometry: Geometry) -> None:
    """Write where an image lies in the network's input into its structure."""
    image["height"], image["width"] = geometry.height, geometry.width
    image["top"], image["left"] = geometry.pad_top, geometry.pad_left
    image["resized_height"], image["resized_width"] = geometry.resized_height, geometry.resized_width
    image["scale_x"], image["scale_y"] = geometry.scale_x, geometry.scale_y
    image["step_x"], image["step_y"] = geometry.scale_x / STRIDE, geometry.scale_y / STRIDE
    image["pad_x"], image["pad_y"] = geometry.pad_left / STRIDE, geometry.pad_top / STRIDE


def _chunks(sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """The images' places, by their pixels, as many at a time as may be decoded together."""
    chunk: list[int] = []
    filled = 0
    for index, size in sizes.items():
        if chunk and filled + size > _PIXELS_AT_ONCE:
            yield chunk
            chunk, filled = [], 0
        chunk.append(index)
        filled += size
    if chunk:
        yield chunk
