"""Clients of the segmentation server: gRPC and HTTP, blocking and asynchronous, and ``python -m client``.

Imports ``pipeline``, and nothing that only a server or a builder needs.
"""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:
    # ``python -m`` puts the working folder first, which may hold another project's modules of the same names.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.errors import (
    RequestError,
    RequestTimeoutError,
    SegmentationError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from client.images import ImageInput, encode_pixels
from client.retry import RetryPolicy
from client.segmentation import AsyncSegmentationClient, SegmentationClient
from pipeline.result import Detection, Segmentation

__all__ = [
    "AsyncSegmentationClient",
    "Detection",
    "ImageInput",
    "RequestError",
    "RequestTimeoutError",
    "RetryPolicy",
    "Segmentation",
    "SegmentationClient",
    "SegmentationError",
    "ServerBusyError",
    "ServerError",
    "ServerUnavailableError",
    "encode_pixels",
]
