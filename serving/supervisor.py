"""Keeps a server running: restarts it when it died, with growing pauses, for as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

from base.errors import OperatorError
from serving.errors import ServingError
from serving.memory import MEMORY_DEATHS
from serving.restarts import RestartPolicy
from serving.server import TritonServer, how_ended


def supervise(
    server: TritonServer,
    policy: RestartPolicy,
    ready_timeout_s: float,
    on_ready: Callable[[], None],
    say: Callable[[str], None],
    watch: Callable[[TritonServer], str] | None = None,
) -> NoReturn:
    """Start a server and keep it running, on the same ports and with the same secret; ends only with an exception.

    A server that does not become ready at its first start is not restarted: its configuration is at fault.

    Args:
        server: not started yet.
        policy: when to restart it.
        ready_timeout_s: how long a start may take, in seconds.
        on_ready: called once, when it is ready for the first time.
        say: gets a line about every death and every restart.
        watch: returns when the server has died, and says how; by default that is all it does.

    Raises:
        ServingError: the first start failed, or the server died once more than the policy restarts it.
    """
    server.start()
    server.wait_ready(ready_timeout_s)
    on_ready()
    deaths = 0
    while True:
        since = time.monotonic()
        fault = (watch or wait_for_end)(server) + MEMORY_DEATHS.cause()
        up_s = time.monotonic() - since
        deaths = 1 if up_s >= policy.steady_s else deaths + 1
        while True:
            if policy.restarts is not None and deaths > policy.restarts:
                times = f", {deaths} times without staying up for {policy.steady_s:g} s" if deaths > 1 else ""
                raise ServingError(f"{fault}{times}; giving up. See its log above{server.last_words()}")
            pause_s = policy.pause_s(deaths)
            of = f" of {policy.restarts}" if policy.restarts is not None else ""
            say(f"{fault}; starting it again in {pause_s:.1f} s (restart {deaths}{of})")
            time.sleep(pause_s)
            try:
                server.restart()
                server.wait_ready(ready_timeout_s)
                break
            except OperatorError as error:
                # The log is quoted when the server is given up.
                fault, deaths = str(error).partition(". Its log ends:")[0], deaths + 1
        say(f"tritonserver is ready again (process {server.pid})")


def wait_for_end(server: TritonServer, timeout_s: float | None = None) -> str:
    """Wait until the server has died; returns how.

    Args:
        server: the server.
        timeout_s: how long to wait, in seconds; None waits without end.

    Raises:
        subprocess.TimeoutExpired: it still runs.
    """
    return f"tritonserver ended {how_ended(server.wait(timeout_s))}"
