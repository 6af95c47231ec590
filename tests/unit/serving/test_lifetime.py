"""Signals that end a command, however it was started."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAITS = """
import os, signal, time
from serving.lifetime import interruptible
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
try:
    with interruptible():
        try:
            print("waits", flush=True)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            print("cleaned up", flush=True)
except KeyboardInterrupt:
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["plain", "ignored by the shell"])
def test_a_signal_reaches_the_clean_up(number, trap):
    with subprocess.Popen(
        ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleaned up\n"
        assert process.wait(60) == 0
