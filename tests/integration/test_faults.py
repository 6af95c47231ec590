"""Every fault of the table in docs/reliability.md, tried on the real server."""

from __future__ import annotations

import pytest

from client import SegmentationClient
from tests.chaos import faults, kills
from tests.chaos.faults_processes import REPLACED
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
def test_a_fault_does_what_the_table_says(patient_repository, name):
    record = faults.FAULTS[name].record(patient_repository)
    assert record["broken"] == []
    assert record["seconds"] is None or record["seconds"] < 30


def test_processes_that_are_killed_again_and_again_are_replaced_every_time(repository, tmp_path):
    result = kills.run(repository, tmp_path, kills=6, seed=1)
    assert result["faults"] == []
    assert sum(result["recovered"].values()) == result["kills"] == 6
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
        # tritonserver may be in the middle of a line.
        assert f"a process of {model} died" in service.wait_said(REPLACED, 60)
        with SegmentationClient(service.server.grpc, precision="int8") as client:
            assert all(len(client.segment(photograph).boxes) for photograph in reference.photographs)
