"""What the gateway answers in place of a result."""

from __future__ import annotations

from http import HTTPStatus
from typing import NoReturn


class Refusal(Exception):
    """A request that is not answered with a result.

    Attributes:
        status: of HTTP.
        message: what came, what is allowed, what to do; it is sent to the caller.
    """

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def refuse(message: str) -> NoReturn:
    """Raise the refusal of a request that is at fault (HTTP 400)."""
    raise Refusal(message)
