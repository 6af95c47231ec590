"""A real Prometheus with the shipped configuration, on the real server under traffic."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from client import SegmentationClient
from client.errors import SegmentationError
from monitoring.dashboard import rows
from serving.server import ServerOptions, TritonServer

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is missing; after apt-get install prometheus, make test runs it",
    ),
]

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
PANELS = [
    (f"{row['row']}-{panel['title']}", legend, query)
    for row in rows()
    for panel in row["panels"]
    for legend, query in panel["queries"].items()
]
PRECISIONS = ("fp32", "int8")
# Longer than the interval of the dashboard's rates (20 s), which need two scrapes inside.
TRAFFIC_S = 30


@pytest.fixture(scope="module")
def prometheus(repository, reference, tmp_path_factory):
    """Prometheus, after traffic that holds some of everything."""
    folder = tmp_path_factory.mktemp("monitoring")
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(MONITORING / name, folder / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TritonServer(ServerOptions(repository, precisions=PRECISIONS)) as server:
        (folder / "targets.yml").write_text(yaml.safe_dump([{"targets": [server.metrics_url]}]))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=(folder / "log").open("w"),
        )
        try:
            traffic(server, reference.photographs)
            yield lambda path, **parameters: ask(f"http://127.0.0.1:{port}/api/v1/{path}", parameters)
        finally:
            process.terminate()
            process.wait()


def ask(url, parameters):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]


def substituted(expression):
    """A panel's query without Grafana's variables; the interval of its rates is four scrapes."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "20s")


def traffic(server, photographs):
    ends = time.monotonic() + TRAFFIC_S

    def user(precision):
        with SegmentationClient(server.grpc_url, precision=precision) as client:
            while time.monotonic() < ends:
                client.segment_batch(photographs[:2])
                for bad in (b"no image", photographs[0].read_bytes()[:2000]):
                    with pytest.raises(SegmentationError):
                        client.segment(bad)

    users = [threading.Thread(target=user, args=(precision,)) for precision in PRECISIONS]
    for each in users:
        each.start()
    for each in users:
        each.join()


def test_the_server_is_scraped(prometheus):
    targets = prometheus("targets")["activeTargets"]
    assert [(target["labels"]["job"], target["health"]) for target in targets] == [("triton", "up")]


def test_the_rules_are_loaded_and_nothing_fires_that_should_not(prometheus):
    groups = prometheus("rules")["groups"]
    loaded = {rule["name"] for group in groups for rule in group["rules"]}
    shipped = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    assert loaded == {rule.get("alert") or rule["record"] for group in shipped for rule in group["rules"]}
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    # Half of the requests were bad images, which may raise alerts; nothing else is wrong.
    states = {rule["name"]: rule["state"] for group in groups for rule in group["rules"] if "state" in rule}
    assert {name for name, state in states.items() if state != "inactive"} <= {"HighErrorRate", "ManyImagesRefused"}


@pytest.mark.parametrize(
    ("legend", "query"),
    [
        pytest.param(legend, query, id=f"{panel}-{legend}")
        for panel, legend, query in PANELS
        if not query.startswith("nv_gpu_")  # only with a GPU
    ],
)
def test_every_query_returns_data(prometheus, legend, query):
    result = prometheus("query", query=substituted(query))["result"]
    assert result, query
    if "{{model}}" in legend and "segment" in query:
        assert len(result) >= len(PRECISIONS)


@pytest.mark.parametrize(
    "name",
    [
        rule["record"]
        for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    ],
)
def test_recorded_series_have_data(prometheus, name):
    assert prometheus("query", query=name)["result"]


def test_refused_images_are_counted_by_reason(prometheus):
    found = prometheus("query", query="segmentation_decode_errors_total > 0")["result"]
    assert {series["metric"]["reason"] for series in found} == {"format", "truncated"}


def test_a_renamed_metric_would_be_noticed(prometheus):
    query = substituted(PANELS[-1][2]).replace("nv_", "nx_")
    assert prometheus("query", query=query)["result"] == []
