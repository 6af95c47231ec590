"""The page, and the documents of the API: files that come with this package, and nothing from anywhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aiohttp import web

_FOLDER: Final = Path(__file__).resolve().parent / "page"
_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/openapi.json": ("openapi.json", "application/json"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/masks.js": ("masks.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_public(path: str) -> bool:
    """Whether a path is one of these files, which say nothing of what is served."""
    return path in _FILES


def routes() -> list[web.RouteDef]:
    """A route for each file; they are read now."""
    return [web.get(path, _answering(_FOLDER / name, kind)) for path, (name, kind) in _FILES.items()]


def _answering(file: Path, kind: str) -> _Handler:
    body = file.read_bytes()
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'}

    async def handle(request: web.Request) -> web.StreamResponse:
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return handle
