"""What goes through a proxy and what never does; keys that cannot be sent."""

import pytest

from client.errors import RequestError
from client.segmentation import SegmentationClient
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


@pytest.mark.parametrize(
    ("protocol", "key", "said"),
    [("http", "short", r"^api_key: an API key is one line of 16 or more"), ("grpc", "k" * 24, "an API key over grpc")],
)
def test_a_key_that_cannot_be_sent_is_refused(protocol, key, said):
    with pytest.raises(RequestError, match=said):
        SegmentationClient(protocol=protocol, api_key=key)
