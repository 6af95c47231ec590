"""Clients of the segmentation server: gRPC and HTTP, blocking and asynchronous, and a command line.

``python -m client --help`` shows the command line.
"""

from client.errors import (
    RequestError,
    RequestTimeoutError,
    SegmentationError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from client.images import ImageInput, encode_pixels
from client.result import Detection, Segmentation
from client.retry import RetryPolicy
from client.segmentation import AsyncSegmentationClient, SegmentationClient

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
