"""JSON of strangers: bounded in size and depth, without duplicate names, endless numbers and NaN."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np

from gateway.errors import refuse
from gateway.limits import Limits

_LONGEST_INTEGER: Final = 20
"""Digits, and a sign: 64 bits have no more. Python takes a time that grows with the square of them."""

_STEPS: Final = np.zeros(256, np.int32)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))


def parse_object(text: bytes, limits: Limits) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: UTF-8.
        limits: ``json_bytes`` and ``json_depth`` count.

    Raises:
        Refusal: the text is too long, too deep or no JSON object, or it has one name twice, NaN or an infinite number.

    Example:
        >>> parse_object(b'{"id": "7", "inputs": []}', Limits())
        {'id': '7', 'inputs': []}
    """
    if len(text) > limits.json_bytes:
        refuse(
            f"the JSON has {len(text)} bytes; allowed: {limits.json_bytes}. Send tensors as binary data behind it "
            "(Inference-Header-Content-Length, binary_data_size)"
        )
    if text.count(b"[") + text.count(b"{") > limits.json_depth:  # the usual request has fewer
        found = depth(text)
        if found > limits.json_depth:
            refuse(f"the JSON is {found} levels deep; allowed: {limits.json_depth}")
    try:
        parsed = _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError, too
        refuse(f"the request is not JSON: {str(error)[:200]}")
    if not isinstance(parsed, dict):
        refuse(f"the request is a JSON {type(parsed).__name__}; allowed: an object with 'inputs'")
    return parsed


def depth(text: bytes) -> int:
    """How many arrays and objects are open at once at most, outside of strings; no recursion, a few ms a megabyte.

    Example:
        >>> depth(b'{"a": [[1], "[[[["]}')
        3
    """
    outside = b"".join(text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
    return int(_STEPS[brackets].cumsum().max(initial=0))


def dump(value: Any) -> bytes:
    """Compact JSON.

    Raises:
        ValueError: it holds NaN or an infinite number, which JSON cannot hold.
    """
    return _ENCODER.encode(value).encode()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        refuse(f"the JSON has {next(name for name in names if names.count(name) > 1)[:100]!r} twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        refuse(f"the JSON has a whole number of {len(digits)} digits; allowed: 64 bits")
    return int(digits)


def _constant(name: str) -> float:
    refuse(f"the JSON has {name}, which JSON cannot hold; allowed: finite numbers")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_int=_integer, parse_constant=_constant)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
