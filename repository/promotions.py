"""The log of promotions, one per model, which says where a rollback goes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from repository.store import PROMOTIONS_NAME

Action = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Promotion:
    """One line of the log.

    Attributes:
        time_utc: ISO 8601.
        profile: cpu, tensorrt or cuda.
        action: ``promote`` or ``rollback``.
        version: the one that is served from then on.
        previous: the one that was served before; None if there was none.
        forced: its gate had not passed, and ``--force`` was given.
    """

    time_utc: str
    profile: str
    action: Action
    version: int
    previous: int | None
    forced: bool = False


def read_promotions(model_folder: Path, profile: str | None = None) -> list[Promotion]:
    """Read a model's log, oldest first, without lines that are cut short.

    Args:
        model_folder: folder of ``network_<precision>``.
        profile: take only this profile's lines.
    """
    try:
        text = (model_folder / PROMOTIONS_NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = [promotion for promotion in map(_parsed, text.splitlines()) if promotion is not None]
    return [promotion for promotion in found if profile in (None, promotion.profile)]


def append_promotion(model_folder: Path, promotion: Promotion) -> None:
    """Add a line to a model's log."""
    with (model_folder / PROMOTIONS_NAME).open("a+b") as stream:
        size = stream.tell()
        # A line that a killed process left half written is ended, so that readers leave out only that one.
        whole = size == 0 or os.pread(stream.fileno(), 1, size - 1) == b"\n"
        stream.write(("" if whole else "\n").encode() + json.dumps(asdict(promotion), allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def rollback_target(promotions: Sequence[Promotion], current: int | None) -> int | None:
    """The version that a rollback goes to: the one that was served before the current one.

    Rolling back twice goes back two promotions.

    Args:
        promotions: one profile's log, oldest first.
        current: the version that is served now.

    Returns:
        Its number; None if nothing was served before.
    """
    history: list[int] = []
    for promotion in promotions:
        if promotion.action == "rollback":
            if promotion.version in history:
                del history[len(history) - history[::-1].index(promotion.version) :]
            else:
                history = [promotion.version]
            continue
        if promotion.previous is not None and history[-1:] != [promotion.previous]:
            history.append(promotion.previous)  # served without having been promoted, as a first build is
        if history[-1:] != [promotion.version]:
            history.append(promotion.version)
    while history and history[-1] == current:
        history.pop()
    return history[-1] if history else None


def was_forced(promotions: Sequence[Promotion], version: int) -> bool:
    """Whether the last promotion of a version was made with ``--force``."""
    return next(
        (one.forced for one in reversed(promotions) if one.version == version and one.action == "promote"), False
    )


def _parsed(line: str) -> Promotion | None:
    try:
        promotion = Promotion(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return promotion if promotion.action in get_args(Action) and isinstance(promotion.version, int) else None
