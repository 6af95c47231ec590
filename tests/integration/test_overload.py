"""More than the server can do, and callers that go away: callers learn of it, nothing hangs, no work is wasted."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request

import pytest

from client import RequestTimeoutError, RetryPolicy, SegmentationClient, ServerBusyError
from repository.store import read_config, write_config
from serving.server import ServerOptions, TritonServer
from steps.publisher import PUBLISH_EVERY_S
from tests.chaos import overload

pytestmark = pytest.mark.server

NEVER = RetryPolicy(retries=0)


@pytest.fixture
def wide_bounds(monkeypatch):
    """Other programs may take the cores in the middle of a short burst; `make chaos` holds the promise itself."""
    monkeypatch.setattr(overload, "SLACK", 4.0)
    monkeypatch.setattr(overload, "AT_ONCE", 1.0)
    monkeypatch.setattr(overload, "LEAST_ANSWERED", 0.25)


@pytest.mark.usefixtures("wide_bounds")
def test_overload_is_refused_at_once_and_the_rest_is_answered_in_time(repository, tmp_path):
    result = overload.run(repository, tmp_path, seconds=15.0)
    if result["faults"]:  # once a shared machine stood still for ten of them; a second burst tells that from a fault
        result = overload.run(repository, tmp_path, seconds=15.0, seed=1)
    assert result["faults"] == []
    assert set(result["outcomes"]) == {"answered", "refused"}
    assert sum(entry["requests"] for entry in result["outcomes"].values()) == result["sent"]


@pytest.mark.usefixtures("wide_bounds")
def test_the_bound_holds_where_decoding_is_what_takes_long(repository, tmp_path):
    """Admission comes before the queue in front of the decoders, so that neither answers nor refusals pile up there."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    code = copy / "preprocess" / "1" / "model.py"
    start = "        responses = answer_each("
    text = code.read_text()
    assert text.count(start) == 1
    code.write_text(text.replace(start, f"        __import__('time').sleep(0.25)\n{start}"))
    result = overload.run(copy, tmp_path, seconds=10.0)
    assert result["faults"] == []


@pytest.fixture(scope="module")
def strict(repository, tmp_path_factory):
    """A server with a bound so low that the second full request is refused."""
    copy = tmp_path_factory.mktemp("strict") / "repository"
    shutil.copytree(repository, copy)
    config = read_config(copy / "admission/config.pbtxt")
    config.parameters["max_latency_ms"].string_value = "1"
    write_config(copy / "admission/config.pbtxt", config)
    with TritonServer(ServerOptions(copy, precisions=("int8",))) as server:
        yield server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_refused_request_gets_the_status_that_says_to_come_back(strict, reference, protocol):
    url = strict.grpc_url if protocol == "grpc" else strict.http_url
    image = reference.photographs[0].read_bytes()
    refusals, answers = [], []
    occupied = threading.Thread(target=occupy, args=(strict, image, answers))
    occupied.start()
    with SegmentationClient(url, protocol, "int8", retry=NEVER) as client:
        while occupied.is_alive():
            try:
                client.segment(image)
                time.sleep(0.3)  # it came first; a pause lets the full request in
            except ServerBusyError as error:
                refusals.append(error)
    occupied.join()
    assert len(answers) == 8  # the full request itself was answered
    assert refusals
    assert {error.status for error in refusals} == {"StatusCode.UNAVAILABLE" if protocol == "grpc" else "503"}
    assert all("Try again later" in str(error) for error in refusals)
    # With retries, the same caller is answered once the full request is done.
    occupied = threading.Thread(target=occupy, args=(strict, image, answers))
    occupied.start()
    with SegmentationClient(url, protocol, "int8", retry=RetryPolicy(retries=50, first_s=0.2)) as client:
        assert len(client.segment(image)) >= 1
    occupied.join()
    assert handed_over(strict, "segmentation_requests_refused_total") >= len(refusals)


def occupy(server, image, answers):
    # It is refused itself as long as the other caller's image is under way.
    with SegmentationClient(server.grpc_url, precision="int8", retry=RetryPolicy(retries=200, first_s=0.01)) as client:
        answers += client.segment_batch([image] * 8)


def test_deadlines_free_the_server(server, reference):
    """Callers whose deadline passes: what waits for the network is dropped, not worked off."""
    image = reference.photographs[0].read_bytes()
    with SegmentationClient(server.grpc_url, precision="fp32", retry=RetryPolicy(retries=20, most_s=1.0)) as client:
        client.segment(image)
        before = handed_over(server, "segmentation_session_images_total")
        asked = 64
        gone = []
        callers = [threading.Thread(target=impatient, args=(server, image, gone)) for _ in range(asked // 8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(gone) == asked // 8
        started = time.monotonic()
        client.segment(image)
        waited = time.monotonic() - started
        worked = handed_over(server, "segmentation_session_images_total") - before - 1
    assert worked <= asked / 2
    # At once on a fast machine. On a slow one, where those who went away fill the bound, one request finds that out.
    assert waited < 10.0


def impatient(server, image, gone):
    """Eight images at once, with a deadline that passes while the first of them are at the network."""
    with SegmentationClient(server.grpc_url, precision="fp32", timeout_s=0.25, retry=NEVER) as client:
        try:
            client.segment_batch([image] * 8)
        except (RequestTimeoutError, ServerBusyError) as error:
            gone.append(error)


def handed_over(server, name):
    """A metric, once the processes that count it have handed over what they have."""
    time.sleep(PUBLISH_EVERY_S + 0.5)
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
