"""Photographs that are sent while a server works on something heavy."""

from __future__ import annotations

import threading
import time

from client import RetryPolicy, SegmentationClient
from tests.chaos.hostile_send import Sender

BOUND_S = 2.0
"""``max_latency_ms`` of admission, as shipped."""


def one_try(server):
    return SegmentationClient(server.grpc_url, "grpc", "int8", retry=RetryPolicy(retries=0))


def beside(server, photograph, requests, folder):
    """Outcomes of heavy requests; the longest a photograph took meanwhile, and before or after, in seconds."""
    outcomes, during = [], []
    sender = Sender(server.grpc_url, server.http_url, folder)
    with one_try(server) as client:
        alone = [_timed(client, photograph) for _ in range(5)]
        thread = threading.Thread(target=lambda: outcomes.extend(sender.send_all(iter(requests))))
        thread.start()
        while thread.is_alive():
            during.append(_timed(client, photograph))
        thread.join()
        alone += [_timed(client, photograph) for _ in range(5)]  # what else the machine does changes
    return outcomes, max(during), max(alone)


def _timed(client, image):
    started = time.monotonic()
    client.segment(image)
    return time.monotonic() - started
