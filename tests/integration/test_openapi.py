"""The OpenAPI document held against the server: generated calls, and what the document says of their answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import site
from serving.server import ServerOptions, TritonServer

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]

CALLS = int(os.environ.get("OPENAPI_CALLS", "25"))  # of each operation
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance"
CHECKS += ",response_schema_conformance,unsupported_method"


@pytest.fixture(scope="module")
def server(patient_repository):
    with TritonServer(ServerOptions(patient_repository)) as running:
        yield running


def test_generated_calls_are_answered_as_the_document_says(server, tmp_path):
    """Set OPENAPI_CALLS=2000 for the long run."""
    report = tmp_path / "events.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{server.http_url}/openapi.json"),
        *("--checks", CHECKS, "--max-examples", str(CALLS), "--seed", "20", "--phases", "examples,coverage,fuzzing"),
        *("--report", "ndjson", "--report-ndjson-path", str(report), "--request-timeout", "60", "--no-color"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.integration.openapi_hooks", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    statuses = [status for line in report.open() for status in statuses_in(json.loads(line))]
    assert len(statuses) > CALLS
    assert {200, 400} <= set(statuses)
    assert max(statuses) < 500
    print({status: statuses.count(status) for status in sorted(set(statuses))})


def statuses_in(event):
    """The statuses of the answers in one event of schemathesis' report."""
    if isinstance(event, dict):
        if "status_code" in event and "headers" in event:
            yield event["status_code"]
        else:
            for value in event.values():
                yield from statuses_in(value)
    elif isinstance(event, list):
        for value in event:
            yield from statuses_in(value)


def test_every_file_of_the_page_is_offered_with_its_headers(server):
    import urllib.request

    for path, (name, kind) in site._FILES.items():
        with urllib.request.urlopen(f"http://{server.http_url}{path}", timeout=20) as answer:
            assert answer.read() == (Path(site.__file__).parent / "page" / name).read_bytes()
            assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self'; ")
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            etag = answer.headers["ETag"]
        again = urllib.request.Request(f"http://{server.http_url}{path}", headers={"If-None-Match": etag})
        with pytest.raises(urllib.error.HTTPError, match="304"):
            urllib.request.urlopen(again, timeout=20)


def test_the_pages_hold_no_inline_scripts_and_nothing_from_elsewhere():
    folder = Path(site.__file__).parent / "page"
    assert {path.name for path in folder.iterdir()} == {name for name, _ in site._FILES.values()}
    for path in folder.iterdir():
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " onclick=", "style="):
            assert word not in text, (path.name, word)
        if path.name not in ("icon.svg", "openapi.json"):
            assert "//cdn" not in text
            assert "https://" not in text
