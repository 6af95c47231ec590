"""What `make fuzz` runs for minutes, for a moment: the seeds of every target, and simple mutations of them."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS

MUTATIONS = 75


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        changed[place : place + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_ends_as_documented(name):
    target, chance = TARGETS[name], random.Random(16)  # noqa: S311 - no secret
    seeds = target.seeds()
    for data in [*seeds, b"", *(mutated(chance.choice(seeds), chance) for _ in range(MUTATIONS))]:
        target.run(data)
