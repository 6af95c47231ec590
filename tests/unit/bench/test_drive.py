"""A window in which a busy machine answers nothing is measured again, longer; a request that fails is an error."""

import pytest

from bench import drive
from bench.drive import Answers, Drivers, Target
from load.errors import LoadError

TARGET = Target("127.0.0.1:8001", "segment_int8", ())


class Meter:
    network = "network_int8"

    def read(self):
        return None


@pytest.fixture
def measure(monkeypatch):
    """Measures a load whose windows have the answers that are given."""
    monkeypatch.setattr(drive.Usage, "between", lambda before, after, network: None)

    def measure(*answers):
        left, seconds = iter(answers), []
        monkeypatch.setattr(
            Drivers, "run", lambda self, target, in_flight, *times: seconds.append(times[0]) or next(left)
        )
        return Drivers(0).measure(TARGET, Meter(), 1, 1.0), seconds

    return measure


NOTHING = Answers((0.0, 1.0))


def test_a_window_without_an_answer_is_measured_again(measure):
    load, seconds = measure(NOTHING, Answers((0.0, 4.0), [20.0], answered=1, cpu_s=0.5))
    assert seconds == [1.0, 4.0]
    assert (load.images_per_s, load.p50_ms, load.client_ms) == (0.25, 20.0, 500.0)


def test_a_server_that_never_answers_is_an_error(measure):
    with pytest.raises(LoadError, match="segment_int8 answered nothing within 16 s"):
        measure(NOTHING, NOTHING, NOTHING)


def test_a_failed_request_is_an_error(measure):
    with pytest.raises(LoadError, match="2 requests to segment_int8 failed, the first with UNAVAILABLE: gone"):
        measure(Answers((0.0, 1.0), failed=2, first_error="UNAVAILABLE: gone"))
