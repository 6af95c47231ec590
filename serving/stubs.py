"""The processes of Triton's Python backend: which died or hang, and how a model gets new ones.

Triton (seen on 2.51) does not restart such a process: every request sent to it fails with "Stub process is not healthy"
after a second, for good. Loading the model anew with a changed configuration makes Triton start new processes beside
the old ones and switch to them, while other requests go on.
"""

from __future__ import annotations

import contextlib
import enum
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
"""A process that a signal has stopped for longer is killed."""

_DRAIN_S: Final = 10.0
_CONFIRM_S: Final = 0.5
_SETTLED_S: Final = 10.0  # a version that is not ready for so long after a process of it went is no longer served
_SILENT_S: Final = 30.0
_ANSWER_S: Final = 5.0  # for one question to the server
_RELOADED: Final = "reloaded_at"


@dataclass(frozen=True)
class Stub:
    """One process of the Python backend.

    Attributes:
        pid: of the process; 0 or less for one that should exist and died before it was seen.
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


class StubFinder:
    """Finds the live processes of the Python backend below a server, again and again.

    Only processes that are new since the last look are read, which takes a millisecond of processor time; asking each
    of the server's 170 threads for its children took ten.

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


class _State(enum.Enum):
    RUNNING = enum.auto()
    GONE = enum.auto()  # whether it was missed or replaced is not known yet
    DEAD = enum.auto()  # missed: its version is served and its place is empty
    RETIRED = enum.auto()  # another process took its place; it is given time for what it has begun


@dataclass
class _Entry:
    """What is known of one process."""

    stub: Stub
    state: _State
    since: float
    stopped_since: float | None = None

    def turn(self, state: _State, now: float) -> None:
        self.state, self.since = state, now


class StubWatch:
    """Looks after the stubs of one running server: a table of processes, each in one of four states.

    Args:
        server: the server.
        longest_call_s: see :data:`LONGEST_CALL_S`.
    """

    def __init__(self, server: TritonServer, longest_call_s: float = LONGEST_CALL_S) -> None:
        self._server = server
        self._longest_call_s = longest_call_s
        self._finder: StubFinder | None = None
        self._table: dict[int, _Entry] = {}
        self._uncounted = set(server.models)  # models with new processes, which may have died already
        self._numbers = itertools.count(0, -1)  # of processes that were never seen

    def poll(self) -> list[Stub]:
        """Look once; call it several times a second. Processes that hang are killed, and reported a moment later.

        Returns:
            Those that died while their version is served, and have not been replaced yet.

        Raises:
            ServingError: the server has not said for half a minute which versions are served.
        """
        if self._server.pid is None:
            return []
        now = time.monotonic()
        alive = self._find(self._server.pid, now)
        for pid, entry in list(self._table.items()):
            if pid in alive:
                overdue = entry.state is _State.RETIRED and now - entry.since >= _DRAIN_S
                if overdue or self._is_stuck(entry, now):
                    _kill(pid)
            elif entry.state is _State.RUNNING:
                entry.turn(_State.GONE, now)
                heartbeat_path(self._server.state_folder, pid).unlink(missing_ok=True)
            elif entry.state is _State.RETIRED:
                del self._table[pid]
                heartbeat_path(self._server.state_folder, pid).unlink(missing_ok=True)
        self._count(now)
        self._settle(now)
        return self._stubs(_State.DEAD)

    def replace(self, stub: Stub) -> None:
        """Load a dead stub's model anew; returns when the new processes answer.

        Raises:
            ServingError: the server could not load it.
        """
        before = [other.pid for other in self._stubs(_State.RUNNING, _State.RETIRED) if other.model == stub.model]
        with self._live() as live:
            try:
                config = self._server.model_config(stub.model)
            except ServingError:  # damaged on disk since the server read it
                config = live.config(stub.model)
            config.setdefault("parameters", {})[_RELOADED] = {"string_value": str(time.time_ns())}
            live.reload(stub.model, json.dumps(config))
        now = time.monotonic()
        for dead in self._stubs(_State.DEAD):
            if dead.model == stub.model:
                del self._table[dead.pid]
        # Triton keeps the sound processes beside the dead one for ever.
        for pid in before:
            self._table[pid].turn(_State.RETIRED, now)
        if self._server.pid is not None:
            self._find(self._server.pid, now)  # the new ones are known from the first moment
        self._uncounted.add(stub.model)

    def kill(self, model: str) -> bool:
        """Kill all processes of a model, so that it is replaced; returns whether it has any."""
        mine = [stub.pid for stub in self._stubs(_State.RUNNING, _State.RETIRED) if stub.model == model]
        for pid in mine:
            _kill(pid)
        return bool(mine)

    def _stubs(self, *states: _State) -> list[Stub]:
        return [entry.stub for entry in self._table.values() if entry.state in states]

    def _find(self, server_pid: int, now: float) -> set[int]:
        """The processes that are alive now; those that are new or were overlooked once enter the table."""
        if self._finder is None:
            self._finder = StubFinder(server_pid)
        alive = {stub.pid: stub for stub in self._finder.find()}
        for pid, stub in alive.items():
            entry = self._table.setdefault(pid, _Entry(stub, _State.RUNNING, now))
            entry.stub = stub
            if entry.state is _State.GONE:
                entry.turn(_State.RUNNING, now)
        return set(alive)

    def _is_stuck(self, entry: _Entry, now: float) -> bool:
        if entry.stub.stopped:
            entry.stopped_since = now if entry.stopped_since is None else entry.stopped_since
            return now - entry.stopped_since > STOPPED_S
        entry.stopped_since = None
        return busy_for_s(self._server.state_folder, entry.stub.pid) > self._longest_call_s

    def _count(self, now: float) -> None:
        """Miss the processes that should exist and died before they were seen for the first time."""
        if not self._uncounted:
            return
        with contextlib.suppress(ServingError), self._live() as live:  # it is asked again at the next look
            for model in sorted(self._uncounted):
                for version in map(str, live.ready_versions(model)):
                    if self._lacks_one(live, model, version):
                        unseen = Stub(next(self._numbers), model, version, "")
                        self._table[unseen.pid] = _Entry(unseen, _State.GONE, now)
                self._uncounted.discard(model)

    def _lacks_one(self, live: LiveServer, model: str, version: str) -> bool:
        """Whether fewer processes of a version were seen than its configuration says, as loaded for every GPU."""
        config = live.config(model)
        if config.get("backend") != "python":
            return False
        seen = [
            stub
            for stub in self._stubs(_State.RUNNING, _State.GONE, _State.DEAD)
            if (stub.model, stub.version) == (model, version) and stub.pid > 0
        ]
        return len(seen) < sum(int(group.get("count", 1)) for group in config.get("instance_group", []))

    def _settle(self, now: float) -> None:
        """Decide which of the processes that are gone were missed: those whose version is served, in an empty place.

        The others went because their version was replaced, which takes a moment, or ten seconds.
        """
        for pid, entry in list(self._table.items()):
            age_s = now - entry.since
            if entry.state is not _State.GONE or age_s < _CONFIRM_S:
                continue
            try:
                replaced = self._is_replaced(entry.stub)
                missed = not replaced and self._is_served(entry.stub)
            except ServingError:
                if age_s >= _SILENT_S:
                    raise
                continue
            if missed:
                entry.turn(_State.DEAD, now)
            elif replaced or age_s >= _SETTLED_S:
                del self._table[pid]

    def _is_replaced(self, stub: Stub) -> bool:
        """Whether another process is where this one was."""
        if stub.pid <= 0:
            with self._live() as live:
                return not self._lacks_one(live, stub.model, stub.version)
        place = (stub.model, stub.version, stub.instance)
        return any((other.model, other.version, other.instance) == place for other in self._stubs(_State.RUNNING))

    def _is_served(self, stub: Stub) -> bool:
        with self._live() as live:
            return int(stub.version) in live.ready_versions(stub.model)

    @contextlib.contextmanager
    def _live(self) -> Iterator[LiveServer]:
        try:
            server = self._server
            with LiveServer(server.grpc_url, server.admin_secret, answer_timeout_s=_ANSWER_S, own=True) as live:
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
