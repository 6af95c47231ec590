"""Another user of this machine, who looks at every process for something."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_LOOK = """
import os, select, sys
if os.geteuid() == 0:  # not before: another user may not be allowed to run this Python
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
secret = sys.stdin.buffer.readline().strip()
found = set()
print("looking", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for process in filter(str.isdigit, os.listdir("/proc")):
        for file in ("cmdline", "environ"):
            try:
                with open(f"/proc/{process}/{file}", "rb") as stream:
                    if secret in stream.read():
                        found.add((int(process), file))
            except OSError:
                pass
print(sorted(found))
"""


@contextlib.contextmanager
def looking_for(secret: str) -> Iterator[list[tuple[int, str]]]:
    """While the block runs, look at the arguments and the environment of all processes, again and again.

    As another user where the tests run as root; else as the same one, who sees as much of arguments.

    Yields:
        A list; behind the block it holds the process and the file below ``/proc`` of each sight of the secret.
    """
    seen: list[tuple[int, str]] = []
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _LOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            process.stdin.write(f"{secret}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "looking\n"
            yield seen
        finally:
            process.stdin.close()
        seen += ast.literal_eval(process.stdout.read())
    if os.geteuid() != 0:
        seen[:] = [each for each in seen if each[1] != "environ"]  # one's own processes'
