"""Reads the project's Dockerfiles: instructions of a stage, and what they copy out of the checkout."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted(path for path in ROOT.glob("*/Dockerfile"))


@dataclass
class Stage:
    """One ``FROM`` and what follows it."""

    base: str  # the image that it stands on, build arguments filled in
    name: str  # behind ``AS``; empty if there is none
    # Pairs of an instruction and its arguments, continuation lines joined
    instructions: list[tuple[str, str]] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)  # build arguments and their defaults

    def all(self, instruction: str) -> list[str]:
        """Arguments of every such instruction, in order."""
        return [arguments for name, arguments in self.instructions if name == instruction]

    def copies(self) -> list[tuple[list[str], str]]:
        """Sources and target of every ``COPY``."""
        words = [arguments.split() for arguments in self.all("COPY")]
        return [(each[:-1], each[-1]) for each in words]

    def environment(self) -> dict[str, str]:
        """Variables of ``ENV``."""
        return dict(pair.split("=", 1) for arguments in self.all("ENV") for pair in arguments.split())


def stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: list[Stage] = []
    global_arguments: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, _, arguments = line.strip().partition(" ")
        arguments = " ".join(arguments.split())
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: global_arguments[match[1]], base)
            found.append(Stage(base, name))
        elif instruction == "ARG":
            name, _, default = arguments.partition("=")
            (found[-1].arguments if found else global_arguments)[name] = default
        else:
            found[-1].instructions.append((instruction, arguments))
    return found
