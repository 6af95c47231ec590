"""Whether a server answers: ``python -m serving.health 127.0.0.1:8000``; and the first picture of a new one.

It sends one small gray picture through an ensemble, as a caller would. ``/v2/health/ready`` alone stays green while
requests fail, for example where shared memory is too small. Only the standard library is imported: it runs every few
seconds.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from pipeline import contract
from serving.http_call import http_call

_SIDE: Final = 320
_BUSY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_TIMEOUT_S: Final = 8.0


def gray_picture(side: int = _SIDE) -> bytes:
    """A gray PNG of ``side`` x ``side`` pixels.

    Example:
        >>> gray_picture(8)[1:4]
        b'PNG'
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)  # 8 bits, gray (PNG, 11.2.2)
    pixels = zlib.compress((b"\0" + bytes([128]) * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def ask(
    http_url: str, model: str, headers: Mapping[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> tuple[int, str]:
    """Send one picture to an ensemble.

    Args:
        http_url: the server's HTTP endpoint, ``host:port``.
        model: the ensemble.
        headers: that the server asks for, such as an API key; None if none.
        timeout_s: how long it may take.

    Returns:
        Status of HTTP, and the text of a refusal.

    Raises:
        OSError: there is no answer.
    """
    image = gray_picture()
    element = len(image).to_bytes(4, "little") + image  # BYTES in binary form (KServe v2, binary tensor data)
    tensor = {
        "name": contract.IMAGE.name,
        "datatype": contract.IMAGE.dtype,
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(element)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    sent = {
        **(headers or {}),
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }
    status, answer = http_call(
        http_url, f"/v2/models/{model}/infer", "POST", header + element, sent, timeout_s=timeout_s
    )
    return status, "" if status == HTTPStatus.OK else answer[:500].decode(errors="replace")


def warm_up(
    http_url: str, models: Iterable[str], headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> dict[str, str]:
    """Send one picture to every ensemble among a new server's models.

    It spares the first caller what each step does only once, and gives admission control its first measurement: until
    then it does not know the server's speed and admits few requests.

    Args:
        http_url: the server's HTTP endpoint, ``host:port``.
        models: that it serves; only ensembles are asked.
        headers: that it asks for, such as an API key; None if none.
        timeout_s: how long each may take.

    Returns:
        By ensemble, why it did not answer; empty if all did.
    """
    faults = {}
    for model in sorted({*map(contract.ensemble_model, contract.PRECISIONS)} & {*models}):
        try:
            why = ask(http_url, model, headers, timeout_s)[1]
        except OSError as error:
            why = str(error) or type(error).__name__
        if why:
            faults[model] = why
    return faults


def fault(http_url: str) -> str:
    """Why a server is not healthy; empty if it is. One that refuses the picture because it is busy is healthy."""
    try:
        models = map(contract.ensemble_model, reversed(contract.PRECISIONS))
        ready = (model for model in models if http_call(http_url, f"/v2/models/{model}/ready")[0] == HTTPStatus.OK)
        model = next(ready, None)
        if model is None:
            return "no ensemble is ready"
        status, text = ask(http_url, model)
    except OSError as error:
        return str(error) or type(error).__name__
    return "" if status in (HTTPStatus.OK, *_BUSY) else f"{model} answers {status}: {text}"


def main(arguments: Sequence[str]) -> int:
    """Check one server; returns 0 if it is healthy, else 1 and says why."""
    if len(arguments) != 1:
        print("python -m serving.health HOST:PORT", file=sys.stderr)
        return 2
    why = fault(arguments[0])
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
