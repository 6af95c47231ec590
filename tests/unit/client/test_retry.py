"""A busy server's refusals are tried again, nothing else is."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest

from client import RetryPolicy, ServerBusyError, ServerError, ServerUnavailableError
from pipeline.errors import BUSY
from tests.unit.client.kserve import Refusal, padded_answer

QUICK = RetryPolicy(retries=3, first_s=0.01, most_s=0.02)
BUSY_TEXT = f"in ensemble 'segment_int8', {BUSY}: with the 40 images under way … Try again later"


def refusing(times, code=grpc.StatusCode.UNAVAILABLE, status=503, text=BUSY_TEXT):
    left = [times]

    def answer(request):
        if left[0]:
            left[0] -= 1
            raise Refusal(code, status, text)
        return padded_answer(request)

    return answer


def test_a_refused_request_is_sent_again_until_it_is_admitted(stub, connect):
    stub.answer = refusing(3)
    assert len(connect(stub.url, retry=QUICK).segment_batch([b"a", b"b"])) == 2
    assert len(stub.received) == 4


@pytest.mark.parametrize(("retry", "attempts"), [(QUICK, 4), (RetryPolicy(retries=0), 1)])
def test_it_gives_up_after_the_last_attempt(stub, connect, retry, attempts):
    stub.answer = refusing(100)
    with pytest.raises(ServerBusyError, match=BUSY):
        connect(stub.url, retry=retry).segment(b"picture")
    assert len(stub.received) == attempts


@pytest.mark.parametrize(
    ("code", "status", "text", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503, "the model is not ready", ServerUnavailableError),
        (grpc.StatusCode.INTERNAL, 500, BUSY_TEXT, ServerError),
    ],
)
def test_other_errors_are_not_tried_again(stub, connect, code, status, text, expected):
    stub.answer = refusing(1, code, status, text)
    with pytest.raises(expected):
        connect(stub.url, retry=QUICK).segment(b"picture")
    assert len(stub.received) == 1


def test_pauses_grow_up_to_their_bound_and_differ():
    policy = RetryPolicy(retries=8, first_s=0.1, most_s=0.8)
    runs = np.array([list(policy.pauses(60.0)) for _ in range(400)])
    bounds = np.minimum(0.8, 0.1 * 2.0 ** np.arange(8))
    assert runs.shape == (400, 8)
    assert (runs <= bounds).all()
    # Full jitter: uniform between 0 and the bound.
    np.testing.assert_allclose(runs.mean(axis=0), bounds / 2, rtol=0.2)
    assert len(np.unique(runs)) == runs.size


def test_no_pause_ends_after_the_timeout(monkeypatch):
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    for pause in RetryPolicy(retries=1000, first_s=0.05, most_s=0.05).pauses(0.2):
        now_s += pause
    assert 1000.1 < now_s <= 1000.2


def test_a_policy_may_ask_for_thousands_of_retries():
    assert len(list(RetryPolicy(retries=3000, most_s=0.001).pauses(60.0))) == 3000
