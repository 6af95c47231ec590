"""Class names on their way: the builder writes them into the models' configurations, callers read them there.

Two parameters of a model's ``config.pbtxt`` hold them: ``class_names``, a JSON list, and ``metadata``, a Python
dictionary as text, which is what ultralytics' Triton client reads (``ultralytics/utils/triton.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipeline.errors import ParameterError
from pipeline.parameters import MAX_CLASS_ID

CLASS_NAMES_PARAMETER: Final = "class_names"
METADATA_PARAMETER: Final = "metadata"
_SHOWN_NAMES: Final = 20


def to_parameters(names: Sequence[str]) -> dict[str, str]:
    """The parameters of a configuration that say the names of classes 0, 1, and so on.

    Example:
        >>> to_parameters(["card"])
        {'class_names': '["card"]', 'metadata': "{'task': 'segment', 'names': {0: 'card'}}"}
    """
    metadata = {"task": "segment", "names": dict(enumerate(names))}
    return {CLASS_NAMES_PARAMETER: json.dumps(list(names), ensure_ascii=False), METADATA_PARAMETER: repr(metadata)}


def from_parameters(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in the parameters of a configuration; empty where it has none, or others than this project's.

    Args:
        parameters: name to text.

    Example:
        >>> from_parameters({"class_names": '["cat", "dog"]'})
        ('cat', 'dog')
    """
    try:
        names = json.loads(parameters[CLASS_NAMES_PARAMETER])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if not isinstance(names, list) or len(names) > MAX_CLASS_ID + 1 or not all(isinstance(one, str) for one in names):
        return ()
    return tuple("".join(letter if letter.isprintable() else "\ufffd" for letter in name) for name in names)


def name_of(index: int, names: Sequence[str]) -> str:
    """The name of a class; its number where it has none.

    Example:
        >>> name_of(0, ["card"]), name_of(7, ["card"])
        ('card', '7')
    """
    return names[index] if 0 <= index < len(names) else str(index)


def class_ids(wanted: Iterable[int | str], names: Sequence[str]) -> list[int]:
    """The numbers of classes that are given by name or by number.

    Args:
        wanted: names, numbers, numbers as text, and texts of several, comma-separated.
        names: of classes 0, 1, and so on; empty where they are unknown.

    Raises:
        ParameterError: a class that the model does not have; the message lists those that it has.

    Example:
        >>> class_ids(["dog", 0, "cat,2"], ["cat", "dog", "cow"])
        [0, 1, 2]
    """
    by_name = {name: index for index, name in reversed(list(enumerate(names)))}
    found: set[int] = set()
    for one in wanted:
        if isinstance(one, str) and one not in by_name:
            found.update(_class_id(part.strip(), by_name, names) for part in one.split(","))
        else:
            found.add(_class_id(one, by_name, names))
    return sorted(found)


def _class_id(given: int | str, by_name: Mapping[str, int], names: Sequence[str]) -> int:
    if isinstance(given, str):
        if given in by_name:
            return by_name[given]
        if given.isascii() and given.isdigit() and len(given) <= len(str(MAX_CLASS_ID)):
            given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < (len(names) or MAX_CLASS_ID + 1):
        if not names:
            allowed = f"class indices from 0 to {MAX_CLASS_ID}; the server says no names"
        else:
            more = f", … ({len(names)} in all)" if len(names) > _SHOWN_NAMES else ""
            allowed = f"{', '.join(names[:_SHOWN_NAMES])}{more}, or their numbers from 0 to {len(names) - 1}"
        raise ParameterError(f"parameter 'classes' names {str(given)[:100]!r}; allowed: {allowed}")
    return given
