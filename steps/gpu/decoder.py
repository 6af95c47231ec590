"""JPEGs decoded by nvImageCodec: on the GPU's decode engines, where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import cv2
import numpy as np

_PROBE: Final = cv2.imencode(".jpg", np.full((256, 256, 3), 128, np.uint8))[1].tobytes()


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the GPU's memory.

    Attributes:
        address: of its first pixel; 8-bit RGB.
        pitch: bytes from row to row.
        height: in pixels, as stored.
        width: likewise.
        owner: what keeps the memory.
    """

    address: int
    pitch: int
    height: int
    width: int
    owner: Any


class JpegDecoder(Protocol):
    """Decodes JPEGs to the GPU's memory."""

    def decode(self, encoded: Sequence[bytes]) -> list[Picture | None]:
        """One picture for each, EXIF orientation not applied; None where it cannot be decoded.

        The pixels are there for what comes behind on the device's stream.
        """


class EngineDecoder:
    """A :class:`JpegDecoder` by nvImageCodec.

    Where a GPU has no decode engines (they came with the A100; GeForce cards have none), nvImageCodec's other backends
    decode. They are not mixed: with both, nvImageCodec gives a part of every batch to the slower ones.

    Args:
        device: number of the GPU.
        stream: address of the ``cudaStream_t`` that the pixels are used on.
        threads: of the processor, for a GPU without engines.

    Attributes:
        has_engines: whether the GPU has decode engines.

    Raises:
        ImportError: nvImageCodec is missing.
    """

    def __init__(self, device: int, stream: int, threads: int = 1) -> None:
        from nvidia import nvimgcodec

        kinds = nvimgcodec.BackendKind
        self._stream_of = nvimgcodec.CodeStream
        self._parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.I_RGB,
        )
        self._stream = stream
        for backends in ([kinds.HW_GPU_ONLY], [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU]):
            self._decoder = nvimgcodec.Decoder(
                device_id=device, max_num_cpu_threads=threads, backends=[nvimgcodec.Backend(kind) for kind in backends]
            )
            self.has_engines = backends == [kinds.HW_GPU_ONLY]
            if self.decode([_PROBE])[0] is not None:
                break

    def decode(self, encoded: Sequence[bytes]) -> list[Picture | None]:
        """See :class:`JpegDecoder`."""
        try:
            streams = [self._stream_of(data) for data in encoded]
            images = self._decoder.decode(streams, params=self._parameters, cuda_stream=self._stream)
        except Exception:  # nvImageCodec raises where it cannot read one of them at all
            if len(encoded) == 1:
                return [None]
            return [picture for data in encoded for picture in self.decode([data])]
        return [None if image is None else _picture(image) for image in images]


def _picture(image: Any) -> Picture | None:
    described = image.__cuda_array_interface__
    height, width, channels = described["shape"]
    if channels != 3 or described["typestr"] != "|u1":
        return None
    strides = described.get("strides")
    return Picture(int(described["data"][0]), strides[0] if strides else width * channels, height, width, image)
