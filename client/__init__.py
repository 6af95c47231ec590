"""Clients of the segmentation server: gRPC and HTTP, blocking and asynchronous, and ``python -m client``.

Imports ``pipeline``, and nothing that only a server or a builder needs.
"""

import sys

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path[0] = __path__[0].rpartition("/")[0]  # it was the working folder, where anybody's modules may lie

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
