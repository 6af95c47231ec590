"""What a caller of ``/v1/segment`` sent: images as a form or as the body itself, and options."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import MultiDict
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from gateway.errors import Refusal, refuse
from gateway.limits import Limits
from pipeline import contract

IMAGE_FIELD: Final = "image"
OPTIONS: Final = ("precision", "confidence", "iou", "max_detections", "mask_format", "classes")
_FORM: Final = "multipart/form-data"
# The last is what curl says of --data-binary.
_RAW: Final = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_MOST_NAME: Final = 255


@dataclass
class Sent:
    """One call.

    Attributes:
        images: encoded, in order.
        names: their file names; empty where there is none.
        options: as text; ``classes`` may be there several times.
    """

    images: list[bytes | bytearray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    options: MultiDict[str] = field(default_factory=MultiDict)

    def add_option(self, name: str, value: str) -> None:
        """Add an option.

        Raises:
            Refusal: it is unknown, or there twice.
        """
        if name not in OPTIONS:
            refuse(f"unknown parameter {name[:100]!r}; allowed: {', '.join(OPTIONS)}, and files as {IMAGE_FIELD!r}")
        if name in self.options and name != "classes":
            refuse(f"parameter {name!r} is there twice")
        self.options.add(name, value)


def read_sent(request: web.BaseRequest, body: bytes, limits: Limits) -> Sent:
    """Read a body, and the options in the address.

    Args:
        request: its head.
        body: whole.
        limits: of a form.

    Raises:
        Refusal: the body is no form or image (415), or has too many images (413), or anything else is at fault (400).
    """
    sent = Sent()
    for name, value in request.query.items():
        sent.add_option(name, value)
    kind, parameters = parse_options_header(request.headers.get("Content-Type", ""))
    if kind == _FORM:
        try:
            _read_form(sent, body, parameters.get("boundary", ""), limits)
        except MultipartError as error:
            status = (
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE if isinstance(error, ParserLimitReached) else HTTPStatus.BAD_REQUEST
            )
            raise Refusal(f"the form cannot be read: {str(error)[:200]}", status) from None
    elif kind.startswith("image/") or kind in _RAW:
        if body:
            sent.images.append(body)
            sent.names.append("")
    else:
        raise Refusal(
            f"Content-Type is {kind[:100]!r}; allowed: {_FORM} with files as {IMAGE_FIELD!r}, or one image as the body "
            "(image/*, application/octet-stream)",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if not sent.images or not all(sent.images):
        refuse(
            f"no image came, or an empty one; send files as {IMAGE_FIELD!r} (curl -F {IMAGE_FIELD}=@photo.jpg) or one "
            "image as the body (curl --data-binary @photo.jpg)"
        )
    return sent


def _read_form(sent: Sent, body: bytes, boundary: str, limits: Limits) -> None:
    parser = PushMultipartParser(
        boundary.encode("latin-1", "replace"),
        max_segment_count=contract.MAX_REQUEST_BATCH + limits.form_fields,
        strict=True,
    )
    part: MultipartSegment | None = None
    data: bytes | bytearray = b""
    with parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                part, data = event, b""
            elif event is not None:
                data = data + event if data else event
            elif part is not None:
                _add_part(sent, part, data, limits)


def _add_part(sent: Sent, part: MultipartSegment, data: bytes | bytearray, limits: Limits) -> None:
    if part.filename or part.name == IMAGE_FIELD:
        if len(sent.images) == contract.MAX_REQUEST_BATCH:
            raise Refusal(
                f"more than {contract.MAX_REQUEST_BATCH} images; send {contract.MAX_REQUEST_BATCH} at a time",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        sent.images.append(data)
        name = (part.filename or "")[:_MOST_NAME]
        sent.names.append("".join(letter if letter.isprintable() else "\ufffd" for letter in name))
        return
    if len(data) > limits.field_bytes:
        refuse(f"the form's field {part.name[:100]!r} has {len(data)} bytes; allowed: {limits.field_bytes}")
    try:
        sent.add_option(part.name, data.decode())
    except UnicodeDecodeError:
        refuse(f"the form's field {part.name[:100]!r} is no UTF-8")
