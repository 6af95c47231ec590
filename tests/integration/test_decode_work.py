"""Whatever pictures one request holds, others are answered: large PNGs beside photographs, on the real server."""

from __future__ import annotations

import subprocess
import sys

import cv2
import grpc
import numpy as np
import pytest

from tests.chaos import protocol
from tests.chaos.corpus_heavy import holding
from tests.integration.beside import BOUND_S, beside

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def large(reference):
    """A photograph as a PNG of 49 megapixels, in squares, so that it has few bytes: only decoding takes long."""
    small = cv2.imdecode(np.frombuffer(reference.photographs[0].read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    pixels = cv2.resize(small, (8160, 6000), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def test_photographs_are_answered_beside_two_such_requests_at_once(server, reference, tmp_path, large):
    requests = [holding("8 x PNG", [large] * 8)] * 2
    outcomes, slowest_s, alone_s = beside(server, reference.photographs[1].read_bytes(), requests, tmp_path)
    assert [(outcome.result, outcome.fault) for outcome in outcomes] == [("refused", "")] * 2
    assert slowest_s < BOUND_S + 3 * alone_s  # on a quiet machine one takes less than a tenth of a second alone


def test_the_refusal_says_what_came_what_is_allowed_and_what_to_do(server, large):
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary(protocol.INFER, lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as no:
            call(holding("8 x PNG", [large] * 8).message, timeout=60)
    assert no.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for words in ("the 8 images", "a PNG of", "to decode", "allowed: 1.5 s", "at most 1 of them", "JPEG instead"):
        assert words in no.value.details()


def test_a_folder_of_such_pictures_is_segmented(server, tmp_path, large):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(large)
    command = [sys.executable, "-m", "client", folder, "--url", server.grpc_url, "--batch-size", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(".png") == 3
