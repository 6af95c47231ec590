"""One HTTP request to the server."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Mapping


def http_call(
    url: str,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> tuple[int, bytes]:
    """Status and body of the answer.

    Args:
        url: ``host:port``.
        path: behind it.
        method: of HTTP.
        body: to send.
        headers: to send.
        timeout_s: for connecting, and for each read.

    Raises:
        OSError: there is no answer, or it is not one of HTTP.
    """
    with contextlib.closing(http.client.HTTPConnection(url, timeout=timeout_s)) as connection:
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error) or type(error).__name__) from error
