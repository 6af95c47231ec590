import base64
import json
import re

import pytest

from load.analysis import analyze
from load.compare import Outcome, Schedule
from load.conditions import Verdict
from load.options import UserOptions
from load.recommendation import recommend
from load.report import Report, write_report
from load.results import Load

SVG_IMAGE = re.compile(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')


@pytest.fixture
def make_report(versions):
    def make(steps, stopped=None, budget_ms=300.0):
        analysis = analyze(steps, versions, budget_ms)
        schedule = Schedule(("fp32", "int8"), ("grpc",), (Load(1), Load(2), Load(8)), 3, 10.0, 1.0, UserOptions())
        return Report(
            schedule,
            Outcome(tuple(steps), versions, {"card": 1}, "fp32", stopped),
            analysis,
            recommend(analysis),
            (Verdict("int8.throughput < 5", False, "int8.grpc.throughput = 30"),),
            {"processor": "<a processor>", "cores": 2},
            {"started by": "this command"},
            "python -m load compare --fail-if 'int8.throughput < 5'",
            "2026-01-01T00:00:00+00:00",
        )

    return make


def test_page_is_whole_and_loads_nothing(make_report, steps, tmp_path):
    page = write_report(make_report(steps), tmp_path).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "url(http" not in page
    assert "&lt;a processor&gt;" in page
    assert "m-int8" in page
    assert "0.9700" in page
    charts = [base64.b64decode(chart).decode() for chart in SVG_IMAGE.findall(page)]
    assert len(charts) == 3
    assert not list(tmp_path.glob(".*"))


def test_charts_draw_what_was_measured(make_report, steps, tmp_path):
    """Each precision's color is drawn as often as there is something to draw, and differs with the numbers."""
    page = write_report(make_report(steps), tmp_path / "one").read_text()
    curves, ratio, time = (base64.b64decode(chart).decode() for chart in SVG_IMAGE.findall(page))
    for color in ("#0072b2", "#009e73"):
        assert curves.lower().count(color) > 10
    assert ratio.lower().count("#009e73") >= 2
    assert time.lower().count("#d55e00") >= 4  # the network's bars of two precisions at two loads
    for one in steps:
        one.throughput *= 2 if one.precision == "int8" else 1
    other = write_report(make_report(steps), tmp_path / "other").read_text()
    assert base64.b64decode(SVG_IMAGE.findall(other)[0]).decode() != curves


def test_json_holds_the_numbers(make_report, steps, tmp_path, monkeypatch):
    monkeypatch.setattr("load.report._charts", lambda _: {})
    write_report(make_report(steps), tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["recommendation"]["precision"] == "int8"
    assert len(values["steps"]) == len(steps)
    assert values["counters_agree"] is True
    assert values["series"][0]["best"] == "2 users"
    assert values["ratios"][0]["throughput"]["rounds"] == 3


def test_failures_are_shown(make_report, step, steps, tmp_path, monkeypatch):
    monkeypatch.setattr("load.report._charts", lambda _: {})
    failing = step("int8", 1, 0, 5.0, 100, failures=3)
    failing.first_errors["wrong"] = "card: 0 detections; expected 1"
    failing.client_cores = 0.95
    report = make_report([failing, *steps], stopped="step 4 of 18: <gone>")
    page = write_report(report, tmp_path).read_text()
    assert "card: 0 detections; expected 1" in page
    assert "ended early, at step 4 of 18: &lt;gone&gt;" in page
    assert "used up to 0.95 of its one core" in page


def test_a_report_of_nothing_is_still_one(make_report, step, tmp_path):
    broken = step("fp32", 1, 0, 0.0, 100)
    broken.latencies_ms = broken.latencies_ms[:0]
    broken.error = "connections were refused"
    page = write_report(make_report([broken], stopped="step 1"), tmp_path).read_text()
    assert "nothing can be recommended" in page
    assert not SVG_IMAGE.findall(page)
