"""A window in which a busy machine answers nothing is measured again, longer; a request that fails is an error."""

import pytest

from bench import under_load
from bench.drive import Answers, Target
from bench.under_load import put_under_load
from load.errors import LoadError

TARGET = Target("127.0.0.1:8001", "segment_int8", ())


class Drivers:
    def __init__(self, *answers):
        self.answers, self.seconds = iter(answers), []

    def run(self, target, in_flight, seconds, warm_up_s):
        self.seconds.append(seconds)
        return next(self.answers)


class Meter:
    def read(self):
        return None


@pytest.fixture(autouse=True)
def usage(monkeypatch):
    monkeypatch.setattr(under_load.Usage, "between", lambda before, after: None)


def test_a_window_without_an_answer_is_measured_again():
    drivers = Drivers(Answers(), Answers([20.0], (0.0, 4.0), answered=1, client_cpu_s=0.5))
    load = put_under_load(drivers, TARGET, Meter(), 1, 1.0)
    assert drivers.seconds == [1.0, 4.0]
    assert (load.images_per_s, load.p50_ms, load.client_ms) == (0.25, 20.0, 500.0)


def test_a_server_that_never_answers_is_an_error():
    with pytest.raises(LoadError, match="segment_int8 answered nothing within 16 s"):
        put_under_load(Drivers(Answers(), Answers(), Answers()), TARGET, Meter(), 1, 1.0)


def test_a_failed_request_is_an_error():
    with pytest.raises(LoadError, match="2 requests to segment_int8 failed, the first with UNAVAILABLE: gone"):
        put_under_load(Drivers(Answers(failed=2, first_error="UNAVAILABLE: gone")), TARGET, Meter(), 1, 1.0)
