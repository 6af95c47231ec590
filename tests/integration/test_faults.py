"""Every fault of the table in docs/reliability.md, tried on the real server."""

from __future__ import annotations

import pytest

from client import SegmentationClient
from tests.chaos import faults, kills
from tests.chaos.faults_processes import REPLACED
from tests.chaos.faults_record import Disturbance, Record
from tests.chaos.faults_service import Service, wait_for

pytestmark = pytest.mark.server

# The service looks at its server's processes for the first time only when a file is there.
LATE_TO_LOOK = """
import sys, time
from pathlib import Path
from serving.watch import StubKeeper
from serving.__main__ import main
mark, look = Path(sys.argv[1]), StubKeeper.look
def look_late(keeper):
    while not mark.exists():
        time.sleep(0.05)
    return look(keeper)
StubKeeper.look = look_late
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_fault_does_what_the_table_says(repository, name):
    record = faults.FAULTS[name](repository)
    assert record.broken == []
    assert all((record.fault, record.lost, record.callers_see, record.recovery))
    assert record.seconds is None or record.seconds < 30


def test_processes_that_are_killed_again_and_again_are_replaced_every_time(repository, tmp_path):
    result = kills.run(repository, tmp_path, kills=6, seed=1)
    assert result["faults"] == []
    assert sum(result["mended"].values()) == result["kills"] == 6
    assert result["answered"] > 0
    assert (tmp_path / "kills.json").is_file()


@pytest.mark.parametrize("model", ["postprocess", "preprocess"])  # of one process, and of two
def test_a_process_that_dies_before_it_was_ever_looked_at_is_replaced_too(repository, reference, tmp_path, model):
    mark = tmp_path / "look"
    with Service(repository, "--precisions=int8", program=("-c", LATE_TO_LOOK, str(mark))) as service:
        victim = service.stubs(model)[0]
        victim.kill()
        wait_for(lambda: victim not in service.stubs(model), 30, "the process to be gone")
        mark.touch()
        assert service.wait_said(REPLACED, 60).startswith(f"a process of {model} died")
        with SegmentationClient(service.server.grpc, precision="int8") as client:
            assert all(len(client.segment(photograph).boxes) for photograph in reference.photographs)


def test_kills_that_are_not_mended_and_errors_that_should_not_be_are_noticed():
    class Silent:
        lines = ()

        def tail(self):
            return "nothing"

    class Victim:
        pid = 7

        def kill(self):
            pass

    with pytest.raises(RuntimeError, match=r"waited 0\.1 s for process 7 to be replaced"):
        kills._kill(Silent(), Victim(), 0.1)
    assert kills._unexpected({"ServerError: boom", "ServerUnavailableError: gone"}) == [
        "an error that should not be: ServerError: boom"
    ]


def test_all_faults_are_shown_and_written(repository, tmp_path, monkeypatch, capsys):
    good = Record("a fault", "nothing", "nothing", "by itself", 1.25)
    bad = Record("another", "all", "nothing", "never", None, broken=["it did not recover"])
    monkeypatch.setattr(faults, "FAULTS", {"good": lambda path: good, "bad": lambda path: bad})
    result = faults.run(repository, tmp_path)
    assert result["faults"] == ["bad: it did not recover"]
    assert (tmp_path / "faults.json").is_file()
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a fault", "1.2", "another", "it did not recover"))
    assert [record["name"] for record in result["records"]] == ["good", "bad"]


def test_what_is_not_as_promised_is_noticed():
    seen = Disturbance(1, 1, 5, wrong=2, slowest_s=11.0, seconds=40.0, errors=["ServerError: boom"])
    assert len(seen.broken("^ServerUnavailableError", 30)) == 4
    assert seen.failed == 2
    fine = Disturbance(1, 1, 5, wrong=0, slowest_s=1.0, seconds=2.0, errors=["ServerError: boom"])
    assert fine.broken("^ServerError: boom", 30) == []
