"""What a first picture meets. That it warms a real server is seen in tests/integration/test_serving_lifecycle.py."""

from __future__ import annotations

import socket

from serving.warm_up import warm_up


def test_a_server_that_is_gone_is_no_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{unused.getsockname()[1]}"
        faults = warm_up(url, ["preprocess", "segment_int8", "segment_fp32", "network_int8"], timeout_s=2)
    assert list(faults) == ["segment_fp32", "segment_int8"]
    assert all("refused" in fault for fault in faults.values())


def test_nothing_is_asked_of_other_models():
    assert warm_up("127.0.0.1:1", ["preprocess", "postprocess", "another"]) == {}
