"""The health check, against servers that answer as tritonserver does."""

import http.server
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from serving.health import fault, gray_picture, main, warm_up


@contextmanager
def answering(ready, status, body=b"{}"):
    """A server of which some ensembles are ready, and that answers every picture alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200 if self.path in [f"/v2/models/{model}/ready" for model in ready] else 400, b"")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(status, body)

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_picture_is_gray():
    picture = cv2.imdecode(np.frombuffer(gray_picture(40), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(picture, np.full((40, 40, 3), 128))


@pytest.mark.parametrize("status", [200, 429, 503])
def test_an_answer_and_a_refusal_for_being_busy_are_healthy(status):
    with answering(["segment_fp32"], status) as url:
        assert fault(url) == ""


def test_a_picture_that_fails_is_not(capsys):
    with answering(["segment_int8"], 500, b"Failed to increase the shared memory pool size") as url:
        assert main([url]) == 1
    assert "segment_int8 answers 500: Failed to increase the shared memory" in capsys.readouterr().err


def test_a_server_without_an_ensemble_or_none_at_all_is_not():
    with answering([], 200) as url:
        assert fault(url) == "no ensemble is ready"
    assert "refused" in fault(url)


def test_it_is_cheap():
    """It runs every few seconds: nothing heavy is imported."""
    code = "import sys, serving.health; print({'numpy', 'cv2', 'google', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_new_server_that_is_gone_is_no_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{unused.getsockname()[1]}"
        faults = warm_up(url, ["preprocess", "segment_int8", "segment_fp32", "network_int8"], timeout_s=2)
    assert list(faults) == ["segment_fp32", "segment_int8"]
    assert all("refused" in why for why in faults.values())


def test_no_first_picture_is_sent_to_other_models():
    assert warm_up("127.0.0.1:1", ["preprocess", "postprocess", "another"]) == {}
