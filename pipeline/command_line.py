"""What the commands of this project share: how they start and end, their options' types, and text from elsewhere."""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TextIO

# C0, DEL and C1, of which terminals take commands; line ends of Unicode's own; and what turns the direction of text.
_COMMANDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LAYOUT: Final = "\n\t"


def prepare() -> None:
    """Make every file name and message printable: what the terminal's encoding lacks appears as ``\\udcff``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: object, layout: bool = False) -> str:
    r"""Text for a terminal: control characters are written as escapes, such as ``\x1b``, instead of being obeyed.

    Args:
        text: what a caller, a file or a server may have chosen.
        layout: keep ends of lines and tabs, as messages of several lines have them.

    Example:
        >>> print(printable("a\x1b[2Jb\n.jpg"))
        a\x1b[2Jb\n.jpg
    """
    return _COMMANDS.sub(lambda found: _escaped(found[0], layout), str(text))


def markup(text: object, layout: bool = False) -> str:
    """The same for rich's consoles, tables and progress bars, which also give brackets a meaning."""
    from rich.markup import escape

    return escape(printable(text, layout))


def say(text: object, file: TextIO | None = None) -> None:
    """Print text that holds names or messages from elsewhere; its own ends of lines and tabs stay.

    Args:
        text: what to print.
        file: standard output if None.
    """
    print(printable(text, layout=True), file=file, flush=True)


def exit_status(
    command: Callable[[], int], failures: tuple[type[Exception], ...], wrong_usage: tuple[type[Exception], ...] = ()
) -> int:
    """Run a command; an error of these types becomes a line on standard error.

    Returns:
        The command's own status; 1 for one of ``failures``, 2 for one of ``wrong_usage``, 130 if it is interrupted.

    Example:
        >>> exit_status(lambda: 0, (OSError,))
        0
    """
    try:
        return command()
    except (*failures, *wrong_usage) as error:
        say(f"error: {error}", sys.stderr)
        return 1 if isinstance(error, failures) else 2
    except KeyboardInterrupt:
        return 130


def names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes some of the ``allowed`` names, comma-separated.

    Example:
        >>> names(("fp32", "fp16"))("fp16, fp32")
        ('fp16', 'fp32')
    """

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r}; allowed: {', '.join(allowed)}, comma-separated")
        return chosen

    return parse


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """The type of an option that takes a whole number of a range, both ends included.

    Example:
        >>> whole(1, 8)("3")
        3
    """

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            bounds = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {bounds}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """The type of an option that takes a time above 0.

    Example:
        >>> seconds("0.5")
        0.5
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: seconds above 0")
    return value


class Parser(argparse.ArgumentParser):
    """An argument parser whose messages show arguments, such as file names, without obeying them."""

    def error(self, message: str) -> NoReturn:
        """See the base class."""
        super().error(printable(message, layout=True))


def _escaped(character: str, layout: bool) -> str:
    return character if layout and character in _LAYOUT else character.encode("unicode_escape").decode("ascii")
