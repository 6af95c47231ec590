"""Request parameters: what a caller may set per request, with ranges and defaults in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.contract import DEFAULT_TOP_K, MASK_FORMATS
from pipeline.errors import ParameterError

MAX_CLASS_ID: Final = 65535

# Triton adds these to a request's parameters.
_SET_BY_TRITON: Final = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers")


@dataclass(frozen=True)
class RequestParameters:
    """The parameters of one request; the defaults are those of common tools.

    Attributes:
        confidence: least score of a detection, in [0, 1].
        iou: a detection whose box overlaps a better one of its class by more than this intersection over
            union is dropped, in [0, 1].
        max_detections: most detections per image, best first, in [1, 1000].
        mask_format: encoding of the masks, one of :data:`pipeline.contract.MASK_FORMATS`.
        classes: class indices to keep; None keeps all.
    """

    confidence: float = 0.25
    iou: float = 0.45
    max_detections: int = 300
    mask_format: str = "rle"
    classes: frozenset[int] | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RequestParameters:
        """Check the parameters of a request as they came over the wire.

        Args:
            values: parameter names to bool, int, float or str. Names that Triton sets itself, and names that
                start with ``triton_``, are ignored. ``classes`` is one index or a comma-separated list.
                Numbers may come as text, such as ``"0.5"``.

        Returns:
            The parameters, defaults filled in.

        Raises:
            ParameterError: an unknown name, a wrong type or a value out of range; the message names the
                parameter, the value and the allowed range.

        Example:
            >>> RequestParameters.parse({"confidence": "0.5", "classes": "0,2"}).classes == {0, 2}
            True
            >>> RequestParameters.parse({"iou": 2})
            Traceback (most recent call last):
            pipeline.errors.ParameterError: parameter 'iou' is 2; allowed: a number from 0 to 1
        """
        parsed: dict[str, Any] = {}
        for name, value in values.items():
            if name in _SET_BY_TRITON or name.startswith("triton_"):
                continue
            parser = _PARSERS.get(name)
            if parser is None:
                allowed = ", ".join(sorted(_PARSERS))
                raise ParameterError(f"unknown parameter {name!r}; allowed: {allowed}")
            parsed[name] = parser(name, value)
        return cls(**parsed)

    def check_classes(self, num_classes: int | None) -> None:
        """Refuse classes that the network does not have.

        Args:
            num_classes: of the network; None, where it is unknown, refuses nothing.

        Raises:
            ParameterError: names the classes and the allowed range.

        Example:
            >>> RequestParameters(classes=frozenset([0])).check_classes(num_classes=80)
        """
        wrong = sorted(index for index in self.classes or () if num_classes is not None and index >= num_classes)
        if wrong and num_classes is not None:
            allowed = "0, its only class" if num_classes == 1 else f"0 to {num_classes - 1}"
            named = ", ".join(map(str, wrong[:10]))
            raise ParameterError(
                f"parameter 'classes' names {named}, which the network does not have; allowed: {allowed}"
            )


@dataclass(frozen=True)
class RequestLimits:
    """What the served network allows of a request, where its own end decides; by default, anything.

    Suppression built into an export bounds the thresholds; an end that needs none makes ``iou`` idle.

    Attributes:
        least_confidence: a lower ``confidence`` is raised to it.
        least_iou: a lower ``iou`` is raised to it; at 1 nothing is suppressed.
        most_iou: a higher ``iou`` is lowered to it.
        most_detections: a higher ``max_detections`` is lowered to it.
    """

    least_confidence: float = 0.0
    least_iou: float = 0.0
    most_iou: float = 1.0
    most_detections: float = DEFAULT_TOP_K

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> RequestLimits:
        """Out of the parameters of a model's configuration; further ones are ignored.

        Raises:
            ValueError: a limit is no number that is allowed; names it.

        Example:
            >>> RequestLimits.read({"least_iou": "1", "max_image_pixels": "100"}).least_iou
            1.0
        """
        limits = {}
        for name, most in (("least_confidence", 1), ("least_iou", 1), ("most_iou", 1), ("most_detections", math.inf)):
            if name not in texts:
                continue
            text = texts[name]
            if not _NUMBER.fullmatch(text) or float(text) > most:
                raise ValueError(f"parameter {name!r} in config.pbtxt is {text!r}; allowed: a number up to {most}")
            limits[name] = float(text)
        return cls(**limits)

    def applied(self, asked: RequestParameters) -> RequestParameters:
        """The parameters within the limits.

        Example:
            >>> RequestLimits(least_confidence=0.4).applied(RequestParameters(confidence=0.1)).confidence
            0.4
        """
        if self == _NO_LIMITS:
            return asked
        return replace(
            asked,
            confidence=max(asked.confidence, self.least_confidence),
            iou=max(min(asked.iou, self.most_iou), self.least_iou),
            max_detections=min(asked.max_detections, int(self.most_detections)),
        )


_NO_LIMITS: Final = RequestLimits()


def _fraction(name: str, value: Any) -> float:
    number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0.0 <= number <= 1.0:
        raise ParameterError(f"parameter {name!r} is {value!r}; allowed: a number from 0 to 1")
    return float(number)


def _count(name: str, value: Any) -> int:
    number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= DEFAULT_TOP_K:
        allowed = f"a whole number from 1 to {DEFAULT_TOP_K}"
        raise ParameterError(f"parameter {name!r} is {value!r}; allowed: {allowed}")
    return number


# Some clients can only send text: numbers as JSON writes them, without spaces, and no NaN.
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?")
_WHOLE: Final = re.compile(r"[0-9]{1,9}")


def _mask_format(name: str, value: Any) -> str:
    if value not in MASK_FORMATS:
        raise ParameterError(f"parameter {name!r} is {value!r}; allowed: {', '.join(MASK_FORMATS)}")
    return str(value)


def _classes(name: str, value: Any) -> frozenset[int]:
    fault = ParameterError(
        f"parameter {name!r} is {value!r}; allowed: class indices from 0 to {MAX_CLASS_ID}, "
        "comma-separated, such as '0,2'"
    )
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise fault
    parts = str(value).split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise fault
    if any(len(part) > 32 or int(part) > MAX_CLASS_ID for part in parts):
        raise fault
    return frozenset(int(part) for part in parts)


_PARSERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "confidence": _fraction,
    "iou": _fraction,
    "max_detections": _count,
    "mask_format": _mask_format,
    "classes": _classes,
}

HELP: Final = {
    "confidence": "least score of a detection, 0 to 1",
    "iou": "overlap above which the worse of two boxes of a class is dropped, 0 to 1",
    "max_detections": "most detections per image",
    "mask_format": f"how masks travel: {', '.join(MASK_FORMATS)}",
    "classes": "class indices to keep, such as 0,2",
}
"""What each parameter is for, as options of commands."""
