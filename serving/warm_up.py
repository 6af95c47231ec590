"""One small picture through every ensemble of a new server.

It spares the first caller what each step does only once, and gives admission control its first measurement: until then
it does not know the server's speed and admits few requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

import cv2
import numpy as np

from pipeline import contract
from serving.http_call import http_call

_SIDE: Final = 320
_ENSEMBLES: Final = frozenset(map(contract.ensemble_model, contract.PRECISIONS))


def warm_up(
    http_url: str, models: Iterable[str], headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> dict[str, str]:
    """Ask every ensemble for the instances of one gray picture.

    Args:
        http_url: the server's HTTP endpoint, ``host:port``.
        models: that it serves; only ensembles are asked.
        headers: that it asks for, such as an API key; None if none.
        timeout_s: how long each may take.

    Returns:
        By ensemble, why it did not answer; empty if all did.
    """
    _, encoded = cv2.imencode(".jpg", np.full((_SIDE, _SIDE, 3), 128, np.uint8))
    return {
        model: fault
        for model in sorted(_ENSEMBLES & set(models))
        if (fault := _ask(http_url, model, encoded.tobytes(), headers or {}, timeout_s))
    }


def _ask(http_url: str, model: str, image: bytes, given: Mapping[str, str], timeout_s: float) -> str:
    element = len(image).to_bytes(4, "little") + image  # BYTES in binary form (KServe v2, binary tensor data)
    tensor = {
        "name": contract.IMAGE.name,
        "datatype": contract.IMAGE.dtype,
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(element)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        **given,
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }
    try:
        status, answer = http_call(
            http_url, f"/v2/models/{model}/infer", "POST", header + element, headers, timeout_s=timeout_s
        )
    except OSError as error:
        return str(error) or type(error).__name__
    return "" if status == HTTPStatus.OK else answer[:500].decode(errors="replace")
