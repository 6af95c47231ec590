"""What glibc does with freed memory, in separate processes."""

import os
import subprocess
import sys

import pytest

from base import allocator

MIB = 2**20
# Of a block of 16 MiB, below a small one that lives on: what the process holds of it when it is freed.
HELD = """
import sys
from base.allocator import give_large_blocks_back, keep_large_blocks
{"give back": give_large_blocks_back, "keep": keep_large_blocks}.get(sys.argv[1], lambda: None)()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = resident()
block = bytearray(b"x") * (16 * 2**20)
above = bytearray(2**16)
del block
print(resident() - before)
"""


def held(how, variables=None):
    environment = {**os.environ, **(allocator.allocator_environment() if variables is None else variables)}
    command = [sys.executable, "-c", HELD, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_blocks_of_a_tensors_size_are_kept():
    assert held("") > 12 * MIB


def test_a_process_keeps_them_without_the_variables_too():
    assert held("keep", {}) > 12 * MIB
    assert held("", {}) < 4 * MIB


def test_a_process_that_asks_for_it_gives_them_back():
    assert held("give back") < 4 * MIB


@pytest.mark.parametrize(("cpus", "arenas"), [(1, "2"), (2, "2"), (12, "3"), (16, "4"), (96, "4")])
def test_arenas_are_few(monkeypatch, cpus, arenas):
    monkeypatch.setattr(allocator, "usable_cpus", lambda: cpus)
    assert allocator.allocator_environment()["MALLOC_ARENA_MAX"] == arenas
