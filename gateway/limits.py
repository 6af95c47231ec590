"""The bounds of one request, one connection and all of them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the gateway takes. Everything beyond is refused before it reaches tritonserver."""

    body_bytes: int = 128 << 20  # of one request
    all_bodies_bytes: int = 512 << 20  # of all requests that are being read or answered
    json_bytes: int = 1 << 20  # of the JSON of one request, without the binary data behind it
    json_depth: int = 32  # of arrays and objects in each other
    json_elements: int = 1 << 18  # numbers or texts that one tensor of an answer may have as JSON
    bytes_elements: int = 4096  # elements of one BYTES input
    tensors: int = 32  # inputs, and outputs asked for, of one request
    dimensions: int = 16  # of one tensor
    parameters: int = 64  # of one request
    name_length: int = 1024  # letters of the name of a model, a tensor or a parameter, and of an identifier
    text_length: int = 64 << 10  # letters of a parameter's value
    line_bytes: int = 8190  # of the request line, and of one header
    headers: int = 100  # of one request
    first_chunks: int = 1024  # of a chunked body that may be of any size; beyond, see ``chunk_bytes``
    chunk_bytes: int = 512  # what the chunks of a chunked body must have on average
    slow_grace_s: float = 20.0  # seconds that a body may take however slowly it comes
    slow_bytes_per_s: int = 16 << 10  # what it must come at on average after that
    idle_s: float = 75.0  # seconds that a connection may wait for a request, or a request for the end of its headers
    answer_s: float = 300.0  # seconds that tritonserver may take for an inference
    look_s: float = 10.0  # seconds that it may take for anything else
    connections: int = 1000  # at once; for one more, the one that has been idle for longest is closed
    form_fields: int = 16  # parts of a form that are no images
    field_bytes: int = 64 << 10  # of such a part
    under_way: int = 64  # requests to ``/v1/segment`` at once
    segment_s: float = 60.0  # seconds that tritonserver may take for one of them
    picture_pixels: int = 25_000_000  # of an image that an overlay is drawn over
    picture_work: int = 1_500_000_000  # of an overlay: pixels of the image times one more than its detections
    pictures: int = 4  # overlays that are drawn or wait for it
