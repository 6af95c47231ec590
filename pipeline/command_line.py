"""What every ``python -m`` of this project does before anything else, and how it prints text from elsewhere."""

from __future__ import annotations

import argparse
import io
import re
import sys
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


def say_error(error: object) -> None:
    """Print the fault that ends a command to standard error."""
    say(f"error: {error}", sys.stderr)


class Parser(argparse.ArgumentParser):
    """An argument parser whose messages show arguments, such as file names, without obeying them."""

    def error(self, message: str) -> NoReturn:
        """See the base class."""
        super().error(printable(message, layout=True))


def _escaped(character: str, layout: bool) -> str:
    return character if layout and character in _LAYOUT else character.encode("unicode_escape").decode("ascii")
