"""docs/reliability.md says what its figures say, and the figures are those of whole runs."""

import json

from tests.chaos import report


def test_the_document_is_what_its_figures_give():
    figures = json.loads(report.FIGURES.read_text())
    assert report.DOCUMENT.read_text() == report.render(figures), "write it with `python -m tests.chaos.report`"


def test_the_figures_are_of_whole_runs_in_which_every_promise_was_kept():
    figures = json.loads(report.FIGURES.read_text())
    assert set(figures) == set(report.PARTS)
    assert figures["hostile"]["inputs"] >= 10_000
    assert (figures["overload"]["factor"], figures["overload"]["seconds"]) == (4.0, 120.0)
    assert figures["soak"]["minutes"] >= 20
    assert len(figures["faults"]["records"]) >= 12
    assert figures["kills"]["kills"] >= 100
    assert [figures[part]["faults"] for part in report.PARTS] == [[]] * len(report.PARTS)


def test_a_document_without_figures_makes_promises_alone():
    text = report.render({})
    assert "## Overload" in text
    assert "images/s for" not in text
