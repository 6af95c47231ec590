"""One small picture through every ensemble of a new server.

It spares the first caller what each step does but once, and it gives admission control its first measurement: until
then it knows nothing of the server's speed and lets few in.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import cv2
import numpy as np

from pipeline import contract

_SIDE: Final = 320
_ENSEMBLES: Final = frozenset(map(contract.ensemble_model, contract.PRECISIONS))


def warm_up(http_url: str, models: Iterable[str], timeout_s: float = 30.0) -> dict[str, str]:
    """Ask every ensemble for the instances of one gray picture.

    Args:
        http_url: the server's HTTP endpoint, ``host:port``.
        models: that it serves; those that are no ensembles are ignored.
        timeout_s: how long each may take.

    Returns:
        By ensemble, why it did not answer; empty if all did. Nothing is raised: the server serves its callers as well
        or as badly without.
    """
    _, encoded = cv2.imencode(".jpg", np.full((_SIDE, _SIDE, 3), 128, np.uint8))
    return {
        model: fault
        for model in sorted(_ENSEMBLES & set(models))
        if (fault := _ask(http_url, model, encoded.tobytes(), timeout_s))
    }


def _ask(http_url: str, model: str, image: bytes, timeout_s: float) -> str:
    element = len(image).to_bytes(4, "little") + image  # BYTES in binary form (KServe v2, binary tensor data)
    tensor = {
        "name": contract.IMAGE.name,
        "datatype": contract.IMAGE.dtype,
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(element)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    host, _, port = http_url.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request(
            "POST",
            f"/v2/models/{model}/infer",
            header + element,
            {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
        )
        answer = connection.getresponse()
        return "" if answer.status == HTTPStatus.OK else answer.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
