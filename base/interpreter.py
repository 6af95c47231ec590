"""How this project starts Python."""

from __future__ import annotations

import sys
from typing import Final

PYTHON: Final = (sys.executable, *(("-P",) if sys.version_info >= (3, 11) else ()))
"""Start of a command: with ``-P``, modules of the working folder are not taken. Python 3.10 has no such option."""
