"""Who may call: an API key where one is set, and no pages of other sites."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from gateway.errors import Refusal
from pipeline.api_key import KEY_HEADER

_OPEN: Final = ("/v2/health/live", "/v2/health/ready")


def check_origin(request: web.BaseRequest) -> None:
    """Refuse what a page of another site has its visitor's browser send; other callers send no ``Origin``.

    Raises:
        Refusal: the request comes from another site (403).
    """
    origin = request.headers.get("Origin")
    if origin is not None and _place(origin) != request.headers.get("Host", "").lower():
        raise Refusal(
            f"Origin is {origin[:100]!r}, and this is {request.headers.get('Host', '')[:100]!r}; pages of other sites "
            "are not answered",
            HTTPStatus.FORBIDDEN,
        )


def check_key(request: web.BaseRequest, key: bytes, public: bool) -> None:
    """Refuse a request without the API key.

    Args:
        request: that has it as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.
        key: the right one.
        public: whether the path needs none, such as the page; nor does health.

    Raises:
        Refusal: the key is missing or wrong (401).
    """
    if public or request.path in _OPEN:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = request.headers.get(KEY_HEADER, "")
    if not hmac.compare_digest(given.strip().encode(errors="replace"), key):
        raise Refusal(
            f"the API key is {'wrong' if given else 'missing'}; send {KEY_HEADER}: KEY, or Authorization: Bearer KEY",
            HTTPStatus.UNAUTHORIZED,
        )


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
