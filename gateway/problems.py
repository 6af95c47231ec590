"""Errors of everything but KServe v2: problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from gateway.json_text import dump

REQUEST_ID_HEADER: Final = "X-Request-Id"
REQUEST_ID: Final = web.RequestKey("request_id", str)
_TRY_AGAIN: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_AFTER_S: Final = "1"


def problem(request: web.BaseRequest, status: int, detail: str) -> web.Response:
    """A problem document.

    Args:
        request: that is answered; its identifier is named.
        status: of HTTP.
        detail: what came, what is allowed, what to do: tritonserver's own text where the error is its own.
    """
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail.encode(errors="replace").decode(),
        "request_id": request.get(REQUEST_ID, ""),
    }
    response = web.Response(body=dump(document), status=status, content_type="application/problem+json")
    if status in _TRY_AGAIN:
        response.headers["Retry-After"] = _RETRY_AFTER_S
    return response
