"""Protobuf messages as the JSON that Triton's HTTP API has for them."""

from __future__ import annotations

from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """A message as plain values, under the names of its fields.

    64-bit numbers stay numbers, which protobuf's own JSON makes texts of, and zeros are written.

    Example:
        >>> from tritonclient.grpc.service_pb2 import ServerMetadataResponse
        >>> plain(ServerMetadataResponse(name="triton", extensions=["statistics"]))
        {'name': 'triton', 'version': '', 'extensions': ['statistics']}
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if not field.is_repeated and field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if not field.is_repeated:
            found[field.name] = _value(field, value)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            of = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _value(of, entry) for key, entry in value.items()}
        else:
            found[field.name] = [_value(field, entry) for entry in value]
    return found


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        name = field.enum_type.values_by_number.get(value)
        return name.name if name is not None else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value
