"""The processes of Triton's Python backend: which died or hang, and how a model gets new ones.

Triton (seen on 2.51) does not start such a process again: every request that comes its way is answered with "Stub
process is not healthy" after a second, for good. Loading the model anew with a configuration that differs makes Triton
start new processes beside the old ones and turn to them, while other requests go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from base.heartbeat import busy_for_s, heartbeat_path
from base.names import STUB_NAME
from repository.live import LiveError, LiveServer
from serving.errors import ServingError
from serving.server import TritonServer

LONGEST_CALL_S: Final = 60.0
"""A call that has taken so long has hung: ten times what the largest request takes on two slow cores."""

STOPPED_S: Final = 2.0
"""A process that has been stopped by a signal for so long is given up."""

_DRAIN_S: Final = 10.0
_CONFIRM_S: Final = 0.5
_SETTLED_S: Final = 10.0  # a version that is not ready for so long after a process of it went is not served any more
_SILENT_S: Final = 30.0
_ANSWER_S: Final = 5.0  # that one question to the server may take
_RELOADED: Final = "reloaded_at"


@dataclass(frozen=True)
class Stub:
    """One process of the Python backend.

    Attributes:
        pid: of the process; 0 or less for one that should be there, and died before it was ever seen.
        model: such as ``preprocess``.
        version: of the model, as a folder's name.
        instance: Triton's name of the instance.
        stopped: whether a signal has stopped it.
    """

    pid: int
    model: str
    version: str
    instance: str
    stopped: bool = False

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"process {self.pid} of {self.model}" if self.pid > 0 else f"a process of {self.model}"


def stubs_of(server_pid: int) -> list[Stub]:
    """The live processes of the Python backend below a server."""
    return StubFinder(server_pid).find()


class StubFinder:
    """Finds the live processes of the Python backend below a server, again and again.

    Of the machine's other processes only those are read that are new since the last time: a look takes one
    millisecond of processor time, where asking each of the server's 170 threads for its children took ten.

    Args:
        server_pid: the server.
    """

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._seen: set[int] = set()
        self._children: set[int] = set()

    def find(self) -> list[Stub]:
        """Look once."""
        running = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()}
        new = {pid for pid in running - self._seen if (_state_and_parent(pid) or ("", 0))[1] == self._server_pid}
        self._seen = running
        self._children = (self._children & running) | new
        return [stub for stub in map(_stub, sorted(self._children)) if stub is not None]


class StubWatch:
    """Looks after the stubs of one server that runs.

    Args:
        server: the server.
        longest_call_s: see :data:`LONGEST_CALL_S`.
    """

    def __init__(self, server: TritonServer, longest_call_s: float = LONGEST_CALL_S) -> None:
        self._server = server
        self._longest_call_s = longest_call_s
        self._finder: StubFinder | None = None
        self._known: dict[int, Stub] = {}
        self._missing: dict[int, tuple[Stub, float]] = {}
        self._dead: dict[int, Stub] = {}
        self._stopped_since: dict[int, float] = {}
        self._retired: dict[int, float] = {}
        self._uncounted = set(server.models)  # models that got new processes, which may have died already
        self._numbers = itertools.count(0, -1)  # of processes that were never seen

    def poll(self) -> list[Stub]:
        """Look once; to be called several times a second. Processes that hang are killed, and reported a moment later.

        Returns:
            Those that died while their version is served, and have not been replaced yet.

        Raises:
            ServingError: for half a minute the server has not said which versions are served.
        """
        if self._server.pid is None:
            return []
        now = time.monotonic()
        alive = self._alive(self._server.pid)
        for stub in alive.values():
            if self._is_stuck(stub, now):
                _kill(stub.pid)
        for gone in set(self._known) - set(alive):
            self._missing[gone] = (self._known[gone], now)
            heartbeat_path(self._server.shm_path, gone).unlink(missing_ok=True)
        self._known = alive
        self._end_retired(now)
        self._count(now)
        self._settle(now)
        return list(self._dead.values())

    def replace(self, stub: Stub) -> None:
        """Load a dead stub's model anew; returns when the new processes answer.

        Raises:
            ServingError: the server could not load it.
        """
        before = [other.pid for other in self._known.values() if other.model == stub.model]
        with self._live() as live:
            try:
                config = self._server.model_config(stub.model)
            except ServingError:  # damaged on disk since the server read it
                config = live.config(stub.model)
            config.setdefault("parameters", {})[_RELOADED] = {"string_value": str(time.time_ns())}
            live.reload(stub.model, json.dumps(config))
        self._dead = {pid: dead for pid, dead in self._dead.items() if dead.model != stub.model}
        if self._server.pid is not None:
            # Known from the first moment, so that one that dies in the next is missed.
            self._known = self._alive(self._server.pid) | self._known
        # Triton keeps the sound processes beside the dead one for ever; they are given time for what they have begun.
        self._retired |= dict.fromkeys(before, time.monotonic() + _DRAIN_S)
        self._uncounted.add(stub.model)

    def kill(self, model: str) -> bool:
        """Kill all processes of a model, so that it is replaced; returns whether it has any."""
        mine = [stub.pid for stub in self._known.values() if stub.model == model]
        for pid in mine:
            _kill(pid)
        return bool(mine)

    def _alive(self, server_pid: int) -> dict[int, Stub]:
        if self._finder is None:
            self._finder = StubFinder(server_pid)
        return {stub.pid: stub for stub in self._finder.find()}

    def _is_stuck(self, stub: Stub, now: float) -> bool:
        if stub.stopped:
            return now - self._stopped_since.setdefault(stub.pid, now) > STOPPED_S
        self._stopped_since.pop(stub.pid, None)
        return busy_for_s(self._server.shm_path, stub.pid) > self._longest_call_s

    def _count(self, now: float) -> None:
        """Miss the processes that should be there and are not: they died before they were seen for the first time."""
        if not self._uncounted:
            return
        try:
            with self._live() as live:
                for model in sorted(self._uncounted):
                    for version in map(str, live.ready_versions(model)):
                        if self._lacking(live, model, version):
                            unseen = Stub(next(self._numbers), model, version, "")
                            self._missing[unseen.pid] = (unseen, now)
                    self._uncounted.discard(model)
        except ServingError:
            pass  # it is asked again at the next look

    def _lacking(self, live: LiveServer, model: str, version: str) -> bool:
        """Whether fewer processes of a version were seen than its configuration says, which says it for every GPU."""
        config = live.config(model)
        if config.get("backend") != "python":
            return False
        gone = [*(stub for stub, _ in self._missing.values()), *self._dead.values()]
        mine = [
            stub
            for stub in (*self._known.values(), *gone)
            if (stub.model, stub.version) == (model, version) and stub.pid > 0 and stub.pid not in self._retired
        ]
        return len(mine) < sum(int(group.get("count", 1)) for group in config.get("instance_group", []))

    def _settle(self, now: float) -> None:
        """Decide which of the processes that are gone were missed: those whose version is served, and whose place is
        empty. The others went because their version was replaced, which takes a moment, or ten seconds."""
        for pid in [pid for pid, (_, since) in self._missing.items() if now - since >= _CONFIRM_S]:
            stub, since = self._missing[pid]
            try:
                replaced = self._is_replaced(stub)
                missed = not replaced and self._is_served(stub)
            except ServingError:
                if now - since >= _SILENT_S:
                    raise
                continue
            if missed:
                self._dead[pid] = stub
            if missed or replaced or now - since >= _SETTLED_S:
                del self._missing[pid]

    def _is_replaced(self, stub: Stub) -> bool:
        """Whether another process is where this one was, and not one that was replaced itself and is given time."""
        if stub.pid <= 0:
            with self._live() as live:
                return not self._lacking(live, stub.model, stub.version)
        place = (stub.model, stub.version, stub.instance)
        others = [other for other in self._known.values() if other.pid not in self._retired]
        return any((other.model, other.version, other.instance) == place for other in others)

    def _is_served(self, stub: Stub) -> bool:
        with self._live() as live:
            return int(stub.version) in live.ready_versions(stub.model)

    def _end_retired(self, now: float) -> None:
        for pid in [pid for pid, due in self._retired.items() if due <= now]:
            del self._retired[pid]
            if self._known.pop(pid, None) is not None:  # so that it is not missed when it goes
                _kill(pid)
                heartbeat_path(self._server.shm_path, pid).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _live(self) -> Iterator[LiveServer]:
        try:
            with LiveServer(self._server.grpc_url, self._server.admin_secret, answer_timeout_s=_ANSWER_S) as live:
                yield live
        except LiveError as error:
            raise ServingError(str(error)) from error


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stub(pid: int) -> Stub | None:
    """What a child of a server is; None if it is gone, or none of the Python backend's."""
    found = _state_and_parent(pid)
    if found is None or found[0] == "Z":
        return None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if STUB_NAME not in words[0]:
            return None
        # stub, path of model.py, region, sizes …, the instance's name, the backend's name
        *_, model, version, _ = Path(words[1]).parts
    except (OSError, ValueError, IndexError):
        return None
    instance = next((word for word in words[2:] if word.startswith(f"{model}_")), "")
    return Stub(pid, model, version, instance, found[0] in ("T", "t"))


def _state_and_parent(pid: int) -> tuple[str, int] | None:
    """The second and third field of ``/proc/PID/stat`` behind the name (proc(5)); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])
