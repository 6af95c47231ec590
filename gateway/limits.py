"""The bounds of one request, one connection and all of them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the gateway takes. Everything beyond is refused before it reaches tritonserver.

    Attributes:
        body_bytes: of one request.
        all_bodies_bytes: of all requests that are being read or answered.
        json_bytes: of the JSON of one request, without the binary data behind it.
        json_depth: of arrays and objects in each other.
        json_elements: numbers or texts that one tensor of an answer may have as JSON.
        bytes_elements: elements of one BYTES input.
        tensors: inputs, and outputs asked for, of one request.
        dimensions: of one tensor.
        parameters: of one request.
        name_length: letters of the name of a model, a tensor or a parameter, and of an identifier.
        text_length: letters of a parameter's value.
        line_bytes: of the request line, and of one header.
        headers: of one request.
        first_chunks: of a chunked body that may be of any size; beyond, see ``chunk_bytes``.
        chunk_bytes: what the chunks of a chunked body must have on average.
        slow_grace_s: seconds that a body may take however slowly it comes.
        slow_bytes_per_s: what it must come at on average after that.
        idle_s: seconds that a connection may wait for a request, or a request for the end of its headers.
        answer_s: seconds that tritonserver may take for an inference.
        look_s: seconds that it may take for anything else.
        connections: at once; for one more, the one that has been idle for longest is closed.
        form_fields: parts of a form that are no images.
        field_bytes: of such a part.
        under_way: requests to ``/v1/segment`` at once.
        segment_s: seconds that tritonserver may take for one of them.
        picture_pixels: of an image that an overlay is drawn over.
        picture_work: of an overlay: pixels of the image times one more than its detections.
        pictures: overlays that are drawn or wait for it.
    """

    body_bytes: int = 128 << 20
    all_bodies_bytes: int = 512 << 20
    json_bytes: int = 1 << 20
    json_depth: int = 32
    json_elements: int = 1 << 18
    bytes_elements: int = 4096
    tensors: int = 32
    dimensions: int = 16
    parameters: int = 64
    name_length: int = 1024
    text_length: int = 64 << 10
    line_bytes: int = 8190
    headers: int = 100
    first_chunks: int = 1024
    chunk_bytes: int = 512
    slow_grace_s: float = 20.0
    slow_bytes_per_s: int = 16 << 10
    idle_s: float = 75.0
    answer_s: float = 300.0
    look_s: float = 10.0
    connections: int = 1000
    form_fields: int = 16
    field_bytes: int = 64 << 10
    under_way: int = 64
    segment_s: float = 60.0
    picture_pixels: int = 25_000_000
    picture_work: int = 1_500_000_000
    pictures: int = 4
