"""Attacks on the gRPC port, which callers reach without a gateway: the server's process lives on, and answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2

from pipeline.loopback import grpc_channel_args
from tests.chaos import http2, protocol

pytestmark = pytest.mark.server

PATIENCE_S = 8.0


def answers(server, message, compression=None, metadata=None):
    """The status of one call and, where it was answered, the number of bytes that the model counted."""
    options = [*grpc_channel_args(server.grpc_url), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc_url, options) as channel:
        call = channel.unary_unary(protocol.INFER, lambda data: data, service_pb2.ModelInferResponse.FromString)
        try:
            answer = call(message, timeout=60, compression=compression, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return int.from_bytes(answer.raw_output_contents[0], "little")


def refusal_of(call, message):
    with pytest.raises(grpc.RpcError) as refused:
        call(message, timeout=60)
    return refused.value.details()


def lives(server, pid):
    return server.pid == pid and answers(server, protocol.infer_request([b"four"]).SerializeToString()) == 4


def test_raw_frames_metadata_and_thousands_of_calls(small):
    pid = small.pid
    attacks = list(http2.attacks(b"image"))
    assert len(attacks) > 40
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda attack: http2.send(small.grpc_url, attack, PATIENCE_S), attacks))
    assert lives(small, pid)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_messages_of_which_a_few_bytes_become_many(small, compression):
    pid = small.pid
    for name, message in http2.bombs(b"four"):
        assert answers(small, message, compression) in {
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.INVALID_ARGUMENT,
            4,
        }, name
    assert lives(small, pid)


def test_memory_of_large_messages_is_given_back(small):
    """A million empty inputs are 2 MB, and 200 MB in the server, which by default kept eight requests for reuse."""
    process = psutil.Process(small.pid)
    before = process.memory_info().rss
    for _ in range(12):
        assert answers(small, b"\x2a\0" * 1_000_000) == grpc.StatusCode.NOT_FOUND
    for _ in range(12):
        assert answers(small, protocol.infer_request([b"four"]).SerializeToString()) == 4
    assert process.memory_info().rss < before + (500 << 20)


@pytest.mark.parametrize("length", [20_000, 2_000_000])
def test_metadata_that_is_too_large_is_refused(small, length):
    pid = small.pid
    message = protocol.infer_request([b"four"]).SerializeToString()
    assert answers(small, message, metadata=(("key", "v" * length),)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert lives(small, pid)


def test_broken_string_data_fails_its_request_alone(server):
    """In a batch, the backend would fail all of its requests."""
    message = protocol.infer_request([b"MM\0*" + bytes(5000)])
    whole = message.SerializeToString()
    message.raw_input_contents[0] = message.raw_input_contents[0][:2000]
    broken = message.SerializeToString()

    def refusals(kind):
        options = [*grpc_channel_args(server.grpc_url), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc_url, options) as channel:
            call = channel.unary_unary(protocol.INFER, lambda data: data, lambda data: data)
            return {refusal_of(call, kind) for _ in range(50)}

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(refusals, [whole, broken] * 4))
    for of_whole, of_broken in zip(texts[::2], texts[1::2], strict=True):
        assert all("a directory of 19789 entries" in text for text in of_whole)
        assert all("incomplete string data" in text for text in of_broken)
