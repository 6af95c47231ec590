"""Request parameters as options of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from client.request import SegmentOptions
from pipeline.contract import MASK_FORMATS
from pipeline.errors import ParameterError
from pipeline.parameters import HELP, RequestParameters


def add_parameter_arguments(parser: Any) -> None:
    """Declare an option for every request parameter, on a parser of argparse or of Locust; all take text."""
    usual = RequestParameters()
    for name, text in HELP.items():
        default = getattr(usual, name)
        shown = f"{text} (default: {'all' if default is None else default})"
        choices = ("", *MASK_FORMATS) if name == "mask_format" else None  # Locust's web page lists them
        parser.add_argument(f"--{name.replace('_', '-')}", default="", metavar="X", choices=choices, help=shown)


def parameters_given(namespace: argparse.Namespace) -> SegmentOptions:
    """The parameters that were given, as keyword arguments of ``segment``.

    Raises:
        ParameterError: a value that the server would refuse; names parameter, value and range.
    """
    texts = {name: text for name in HELP if (text := getattr(namespace, name))}
    classes = [part.strip() for part in texts.get("classes", "").split(",")]
    if not all(part.isdecimal() for part in classes) and "classes" in texts:  # names, which only the server knows
        if not all(classes):
            raise ParameterError(
                f"parameter 'classes' is {texts['classes']!r}; allowed: names or indices, such as card or 0,2"
            )
        names = texts.pop("classes")
        return {**_parsed(texts), "classes": [names]}
    return _parsed(texts)


def _parsed(texts: Mapping[str, str]) -> SegmentOptions:
    parsed = RequestParameters.parse(texts)
    values: Any = {name: getattr(parsed, name) for name in texts}
    if "classes" in values:
        values["classes"] = sorted(values["classes"])
    return values  # type: ignore[no-any-return]
