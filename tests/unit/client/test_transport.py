"""What goes through a proxy, and what never does."""

import pytest

from pipeline.loopback import grpc_channel_args, is_loopback


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("127.0.0.1:8001", True),
        ("127.8.9.1:8001", True),
        ("[::1]:8001", True),
        ("localhost:8001", True),
        ("LocalHost:8000/base/path", True),
        ("0.0.0.0:8001", True),
        ("localhost", True),
        ("localhost.example.org:8001", False),
        ("192.0.2.1:8001", False),
        ("[2001:db8::1]:8001", False),
        ("server:8001", False),
        ("[::1", False),
    ],
)
def test_loopback_is_called_directly_and_others_as_the_environment_says(url, loopback):
    assert is_loopback(url) == loopback
    assert (("grpc.enable_http_proxy", 0) in grpc_channel_args(url)) == loopback
