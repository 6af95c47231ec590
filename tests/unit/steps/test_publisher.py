"""Counts go to the server in few messages, and none is lost. The server's metric is a stand-in."""

from __future__ import annotations

import threading
import time

import pytest

from steps.publisher import Publisher
from tests.chaos.faults_service import wait_for


class Metric:
    def __init__(self):
        self.messages = []

    def increment(self, value):
        self.messages.append(value)


@pytest.fixture
def metric():
    return Metric()


def test_what_is_counted_within_the_interval_goes_in_one_message(metric):
    publisher = Publisher(every_s=0.2)
    tally = publisher.tally(metric)
    for _ in range(100):
        tally.add()
    tally.add(0.5)
    wait_for(lambda: metric.messages, 10, "a message")
    assert metric.messages == [100.5]
    tally.add(2)
    wait_for(lambda: len(metric.messages) == 2, 10, "a message")
    assert metric.messages == [100.5, 2.0]
    publisher.close()
    assert len(metric.messages) == 2


def test_nothing_is_sent_while_nothing_is_counted(metric):
    publisher = Publisher(every_s=0.01)
    publisher.tally(metric)
    time.sleep(0.1)
    publisher.close()
    assert metric.messages == []


def test_the_last_counts_are_handed_over_at_the_end(metric):
    publisher = Publisher(every_s=60.0)
    publisher.tally(metric).add(3)
    publisher.close()
    assert metric.messages == [3.0]


def test_no_count_of_any_thread_is_lost(metric):
    publisher = Publisher(every_s=0.001)
    tally = publisher.tally(metric)

    def count():
        for _ in range(10_000):
            tally.add()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publisher.close()
    assert sum(metric.messages) == 40_000
