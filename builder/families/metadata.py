"""What exporters write beside the graph: names, versions, tasks; and the advice that follows from it."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

EXPORT_COMMAND: Final = "yolo export model=best.pt format=onnx"

_FACTS: Final = ("task", "stride", "imgsz", "version", "description")
_MOST_FACT: Final = 200  # characters
_IGNORED: Final = "the export's metadata 'names' is ignored, and classes are called class_0 and so on: {}"
_MOST_NAMES: Final = 1 << 20  # characters; ten thousand names of a hundred
_QUOTED: Final = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_FLAT: Final = re.compile(r"\s*(\{[0-9\s:,]*\}|\[[0-9\s,]*\]|\([0-9\s,]*\))\s*")
_HEAD_CAN_BE_TURNED_OFF_SINCE: Final = (8, 4, 8)
_NMS_SELECTS_THE_HEAD_SINCE: Final = (8, 4, 142)


def advice_without_suppression(metadata: Mapping[str, str]) -> str:
    """How to export plain outputs with the version of ultralytics that the file names.

    YOLO26 has an end-to-end head. Before 8.4.8 its exports always use it; from 8.4.8 to 8.4.141 it is the default and
    ``end2end=False`` turns it off; from 8.4.142 on plain outputs are the default and ``nms=False`` selects that head
    (read in the packages 8.4.0, 8.4.7, 8.4.8, 8.4.141, 8.4.142 and 8.4.190).
    """
    since = f"leave `nms` and `end2end` out (`{EXPORT_COMMAND}`), because nms=False selects the end-to-end head"
    before = f"set end2end=False and leave `nms` out (`{EXPORT_COMMAND} end2end=False`)"
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", metadata.get("version", ""))
    if match is None:
        return f"Export again. With ultralytics 8.4.142 or newer: {since}. With an older one: {before}"
    again = f"Export again (ultralytics {match.group()})"
    version = tuple(map(int, match.groups()))
    if version >= _NMS_SELECTS_THE_HEAD_SINCE:
        return f"{again}: {since}"
    if metadata.get("end2end") != "True":
        return f"{again} with nms=False (`{EXPORT_COMMAND} nms=False`)"
    if version < _HEAD_CAN_BE_TURNED_OFF_SINCE:
        return f"This version of ultralytics ({match.group()}) cannot turn it off; update it, export again and {since}"
    return f"{again}: {before}. From 8.4.142 on: {since}"


def model_name(metadata: Mapping[str, str]) -> str | None:
    """``yolov8n-seg`` out of a description such as ``Ultralytics YOLOv8n-seg model trained on coco.yaml``."""
    match = re.search(r"\b(yolo\w{0,40}?-seg)\b", metadata.get("description", ""), re.IGNORECASE)
    return match.group(1) if match else None


def facts_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the manifest keeps of the metadata, in short and printable text."""
    kept = {key: metadata[key][:_MOST_FACT] for key in _FACTS if metadata.get(key)}
    return {key: "".join(one if one.isprintable() else "\ufffd" for one in value) for key, value in kept.items()}


def count_names(metadata: Mapping[str, str]) -> int:
    """How many class names the metadata has; 0 where they cannot be read."""
    names, _ = read_names(metadata)
    return len(names) if names is not None else 0


def class_names(
    metadata: Mapping[str, str], num_classes: int, given: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Class names from the metadata (``{0: 'person', …}``), else those given, else ``class_0`` and so on.

    Returns:
        One name per class, in printable characters; and a note that says what is ignored, empty if nothing is.
    """
    names, fault = read_names(metadata)
    if names is not None and given and len(names) == num_classes:
        fault = "the class names given are ignored: the file has its own"
    elif names is None and len(given) == num_classes:
        names = list(given)
    if names is not None and len(names) != num_classes:
        names, fault = None, _IGNORED.format(f"it does not hold {num_classes} names")
    if names is None:
        if given and len(given) != num_classes:
            fault = f"{len(given)} class names were given, but the network has {num_classes} classes; they are ignored"
        return tuple(f"class_{index}" for index in range(num_classes)), fault
    shown = tuple("".join(one if one.isprintable() else "\ufffd" for one in str(name)) for name in names)
    changed = sum(name != str(given) for name, given in zip(shown, names, strict=True))
    if changed:
        fault = f"{changed} class names held characters that cannot be printed; they are replaced"
    return shown, fault


def read_names(metadata: Mapping[str, str]) -> tuple[list[Any] | None, str]:
    """The names, by class; None and the reason if there are none, empty if the metadata says nothing."""
    text = metadata.get("names")
    if text is None:
        return None, ""
    if len(text) > _MOST_NAMES:
        return None, _IGNORED.format(f"it has {len(text)} characters; allowed: {_MOST_NAMES}")
    names = None
    # Python's own reader fails on deep nesting in ways that end the process: nothing but a flat list reaches it.
    if _FLAT.fullmatch(_QUOTED.sub("", text)):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            names = ast.literal_eval(text.strip())
    if isinstance(names, dict) and all(isinstance(index, int) and 0 <= index < _MOST_NAMES for index in names):
        names = [names.get(index, f"class_{index}") for index in range(max(names, default=-1) + 1)]
    if not isinstance(names, list | tuple) or not names:
        return None, _IGNORED.format("it is not a flat list of names, such as {0: 'person'}")
    return list(names), ""
