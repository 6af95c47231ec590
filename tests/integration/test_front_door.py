"""``/v1``: plain HTTP in front of the real server, held against what gRPC answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as coco

from client import AsyncSegmentationClient, SegmentationClient
from client.errors import ServerError
from gateway.limits import Limits
from load.payloads import calling
from pipeline.api_key import KEY_VARIABLE
from pipeline.mask_formats import decode_mask
from pipeline.overlay import draw_overlay
from serving.server import ServerOptions, TritonServer
from tests.chaos.faults_service import wait_for
from tests.gateways import running_gateway
from tests.unit.serving.repositories import tiny_repository

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]

HOSTILE_FORMS = int(os.environ.get("HOSTILE_FORMS", "100"))


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


def ask(url, path="/v1/segment", body=None, method=None, **headers):
    connection = http.client.HTTPConnection(url, timeout=60)
    with contextlib.closing(connection):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, given)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def form(*parts, boundary="limit"):
    """A form: pairs of name and content, or triples with a file name. Returns body and content type."""
    body = b""
    for name, content, *file in parts:
        disposition = f'form-data; name="{name}"' + "".join(f'; filename="{one}"' for one in file)
        data = content if isinstance(content, bytes) else content.encode()
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def post(url, *parts, path="/v1/segment", **headers):
    body, kind = form(*parts)
    return ask(url, path, body, Content_Type=kind, **headers)


@pytest.fixture(scope="module")
def server(patient_repository):
    with TritonServer(ServerOptions(patient_repository)) as running:
        yield running


@pytest.fixture(scope="module")
def url(server):
    return server.http_url


@pytest.fixture(scope="module")
def photographs(reference):
    return [path.read_bytes() for path in reference.photographs]


@pytest.fixture(scope="module")
def results(server, photographs):
    with SegmentationClient(server.grpc_url, precision="int8") as client:
        return client.segment_batch(photographs)


def the_same(image, result):
    """Whether an answer in JSON says what a result of gRPC does, but for rounding."""
    assert (image["height"], image["width"]) == result.image_size
    assert len(image["detections"]) == len(result)
    for said, found in zip(image["detections"], result, strict=True):
        assert (said["class_id"], said["class_name"]) == (found.class_id, "card")
        assert said["score"] == pytest.approx(found.score, abs=1e-5)
        assert said["box"] == pytest.approx(found.box.tolist(), abs=0.006)
        assert said["mask"] == {"size": list(result.image_size), "counts": found.encoded_mask.decode()}


def test_one_photograph_as_a_form_and_as_the_body(url, photographs, results):
    answer = post(url, ("image", photographs[0], "photo.png"))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["model"] == {"name": "segment_int8", "precision": "int8", "version": "1"}
    assert answer.json["images"][0]["name"] == "photo.png"
    the_same(answer.json["images"][0], results[0])
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        the_same(ask(url, body=photographs[0], Content_Type=kind).json["images"][0], results[0])


def test_curl_as_the_readme_has_it(url, reference, results):
    """curl writes forms in its own way, and says Expect: 100-continue in front of a megabyte."""
    readme = (ROOT / "README.md").read_text()
    line = re.search(r"^curl -F .*$", readme, re.MULTILINE).group().replace("127.0.0.1:8000", url)
    for path, result in zip(reference.photographs, results, strict=True):
        command = line.replace("photo.jpg", str(path))
        answer = subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        the_same(json.loads(answer.stdout)["images"][0], result)


def test_several_photographs_in_one_call(url, photographs, results):
    answer = post(url, *(("image", data, f"{number}.png") for number, data in enumerate(photographs[:3])))
    assert [image["name"] for image in answer.json["images"]] == ["0.png", "1.png", "2.png"]
    for image, result in zip(answer.json["images"], results, strict=False):
        the_same(image, result)


def test_options_in_the_address_or_in_the_form(url, photographs, server):
    with SegmentationClient(server.grpc_url, precision="fp32") as client:
        expected = client.segment(photographs[2], confidence=0.95, iou=0.3, max_detections=1)
    options = {"precision": "fp32", "confidence": "0.95", "iou": "0.3", "max_detections": "1", "classes": "card"}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    for answer in (
        ask(url, f"/v1/segment?{query}", photographs[2]),
        post(url, ("image", photographs[2], "x"), *options.items()),
        post(url, *options.items(), ("image", photographs[2])),
    ):
        assert answer.json["model"]["precision"] == "fp32"
        the_same(answer.json["images"][0], expected)
    assert ask(url, "/v1/segment?classes=0", photographs[2]).status == 200


def test_masks_in_every_form_are_the_same_mask(url, photographs, results):
    for mask_format in ("polygon", "png", "none", "rle"):
        image = ask(url, f"/v1/segment?mask_format={mask_format}", photographs[1]).json["images"][0]
        height, width = image["height"], image["width"]
        for said, mask in zip(image["detections"], results[1].masks, strict=True):
            if mask_format == "none":
                assert "mask" not in said
            elif mask_format == "polygon":
                runs = coco.frPyObjects(said["mask"], height, width)
                assert np.array_equal(coco.decode(coco.merge(runs)).astype(bool), mask)
            elif mask_format == "png":
                encoded = np.frombuffer(base64.b64decode(said["mask"]), np.uint8)
                assert np.array_equal(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) > 0, mask)
            else:
                assert np.array_equal(coco.decode(said["mask"]).astype(bool), mask)
                assert np.array_equal(decode_mask(said["mask"]["counts"].encode(), "rle", height, width), mask)


@pytest.mark.parametrize(("accept", "suffix"), [("image/png", "png"), ("text/html, image/jpeg;q=0.9", "jpeg")])
def test_the_picture(url, reference, photographs, results, accept, suffix):
    answer = post(url, ("image", photographs[1], "x.png"), Accept=accept)
    assert (answer.status, answer.headers["Content-Type"]) == (200, f"image/{suffix}")
    drawn = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.imread(str(reference.photographs[1]), cv2.IMREAD_COLOR)
    expected = cv2.cvtColor(draw_overlay(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), results[1]), cv2.COLOR_RGB2BGR)
    if suffix == "jpeg":
        expected = cv2.imdecode(cv2.imencode(".jpg", expected, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    assert np.array_equal(drawn, expected)


REFUSED = [
    ("no image", lambda url, _: post(url, ("confidence", "0.5")), 400, "no image came"),
    ("an empty one", lambda url, _: post(url, ("image", b"", "x")), 400, "no image came"),
    ("no picture", lambda url, _: post(url, ("image", b"text", "x")), 400, "not an image of an accepted format"),
    ("cut off", lambda url, image: post(url, ("image", image[:999], "x")), 400, "in ensemble 'segment_int8'"),
    ("unknown option", lambda url, image: ask(url, "/v1/segment?conf=1", image), 400, "unknown parameter 'conf'"),
    ("out of range", lambda url, image: ask(url, "/v1/segment?iou=2", image), 400, "allowed: a number from 0 to 1"),
    ("twice", lambda url, image: ask(url, "/v1/segment?iou=1&iou=1", image), 400, "is there twice"),
    ("no such class", lambda url, image: ask(url, "/v1/segment?classes=dog", image), 400, "allowed: card, or their"),
    ("format", lambda url, image: ask(url, "/v1/segment?mask_format=svg", image), 400, "rle, polygon, png, none"),
    ("precision", lambda url, image: ask(url, "/v1/segment?precision=int4", image), 400, "fp32, fp16, int8"),
    ("nine", lambda url, image: post(url, *[("image", image, "x")] * 9), 413, "send 8 at a time"),
    ("two drawn", lambda url, image: post(url, *[("image", image)] * 2, Accept="image/png"), 400, "one at a time"),
    ("a form's name", lambda url, image: ask(url, body=image, Content_Type="application/json"), 415, "allowed: multi"),
    ("compressed", lambda url, image: ask(url, body=image, Content_Encoding="gzip"), 415, "Content-Encoding"),
    ("accept", lambda url, image: ask(url, body=image, Accept="text/html"), 406, "application/json"),
    ("no end", lambda url, image: ask(url, body=form(("image", image))[0][:-9], Content_Type=form()[1]), 400, "form"),
    ("method", lambda url, _: ask(url), 405, "Method Not Allowed"),
    ("path", lambda url, _: ask(url, "/v1/detect"), 404, "Not Found"),
    ("other site", lambda url, image: ask(url, body=image, Origin="http://example.org"), 403, "other sites"),
    ("no site", lambda url, image: ask(url, body=image, Origin="null"), 403, "other sites"),
]  # fmt: skip


@pytest.mark.parametrize(("send", "status", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusals_are_problem_documents(url, photographs, send, status, text):
    answer = send(url, photographs[0])
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json["status"] == status
    assert answer.json["type"] == "about:blank"
    assert answer.json["title"] == http.client.responses[status]
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert text in answer.json["detail"]


def test_the_callers_identifier_comes_back(url, photographs):
    answer = ask(url, body=photographs[0], X_Request_Id="order-7")
    assert answer.headers["X-Request-Id"] == answer.json["request_id"] == "order-7"
    for strange in ("a b", "x" * 129, "<script>"):
        assert re.fullmatch(r"[0-9a-f]{16}", ask(url, "/v1/models", X_Request_Id=strange).headers["X-Request-Id"])


def test_what_is_served(url):
    document = ask(url, "/v1/models").json
    assert [(one["precision"], one["class_names"]) for one in document["models"]] == [
        (precision, ["card"]) for precision in ("fp32", "fp16", "int8")
    ]
    assert document["defaults"]["precision"] == "int8"


def test_metrics_count(url, photographs):
    def value(name, **labels):
        text = ask(url, "/metrics").body.decode()
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    requests, images = "segmentation_gateway_requests_total", "segmentation_gateway_images_total"
    before = [value(requests, route="/v1/segment", status=status) for status in ("200", "400")]
    counted = value(images, precision="int8")
    post(url, ("image", photographs[0], "x"), ("image", photographs[0], "y"))
    ask(url, body=b"no picture")
    ask(url, "/nowhere/a"), ask(url, "/nowhere/b")
    after = [value(requests, route="/v1/segment", status=status) for status in ("200", "400")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
    assert value(images, precision="int8") == counted + 2
    assert value(requests, route="other", status="404") >= 2
    assert value("segmentation_gateway_requests_under_way") == 0


def test_bounds(server, photographs):
    limits = replace(Limits(), under_way=1, body_bytes=2 << 20, picture_pixels=100_000, segment_s=0.001)
    with running_gateway(server.grpc_url, limits) as url:
        assert post(url, ("image", bytes(3 << 20), "x")).status == 413
        late = ask(url, body=photographs[0])
        assert (late.status, late.json["detail"]) == (504, "tritonserver did not answer in time")
    with running_gateway(server.grpc_url, replace(limits, segment_s=60.0)) as url:
        drawn = ask(url, body=photographs[0], Accept="image/png")
        assert (drawn.status, drawn.headers["Content-Type"]) == (413, "application/problem+json")
        assert "909x909 pixels" in drawn.json["detail"]
        with socket.create_connection(url.split(":")) as slow:  # holds the only place
            slow.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
            wait_for(lambda: ask(url, body=photographs[0]).status == 429, 20, "a refusal")
            busy = ask(url, body=photographs[0])
            assert busy.headers["Retry-After"] == "1"
        wait_for(lambda: ask(url, body=photographs[0]).status == 200, 20, "an answer")


def test_a_server_that_is_gone(tmp_path):
    with TritonServer(ServerOptions(tiny_repository(tmp_path / "tiny"))) as small:
        grpc_url = small.grpc_url
        answer = ask(small.http_url, body=b"four")
        assert (answer.status, answer.json["title"]) == (502, "Bad Gateway")  # an ensemble of another kind
    with running_gateway(grpc_url) as url:
        gone = ask(url, body=b"four")
        assert (gone.status, gone.headers["Retry-After"]) == (503, "1")
        assert gone.json["detail"] == "tritonserver does not answer; it may be starting: try again"


def test_who_leaves_keeps_a_place_until_the_work_is_done(server, photographs):
    """tritonserver 2.51 aborts where a call is cancelled in the wrong moment, so that four calls go on to their end."""
    pid = server.pid

    def images_done():
        with urllib.request.urlopen(f"http://{server.http_url}/v2/models/network_fp32/stats", timeout=20) as answer:
            return json.load(answer)["model_stats"][0]["inference_count"]

    body, kind = form(*[("image", photographs[1], "x")] * 8)
    head = f"POST /v1/segment?precision=fp32 HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    before = images_done()
    with contextlib.ExitStack() as callers:
        for _ in range(4):
            connection = callers.enter_context(socket.create_connection(server.http_url.split(":")))
            connection.sendall(request)
        wait_for(lambda: "under_way 4" in ask(server.http_url, "/metrics").body.decode(), 20, "all calls")
    wait_for(lambda: "under_way 0" in ask(server.http_url, "/metrics").body.decode(), 60, "their end")
    wait_for(lambda: images_done() - before == 32, 10, "all images to be counted")
    assert ask(server.http_url, "/v1/segment?precision=fp32", photographs[1]).status == 200
    assert server.pid == pid


def test_a_key_from_a_file(server, photographs, tmp_path):
    key = b"k" * 24
    with running_gateway(server.grpc_url, api_key=key) as url:
        for path in ("/", "/docs", "/openapi.json", "/page/page.js", "/v2/health/ready"):
            assert ask(url, path).status == 200, path
        for path in ("/v1/models", "/metrics", "/v2/models/stats", "/v2"):
            assert ask(url, path).status == 401, path
            assert ask(url, path, X_API_Key="wrong").headers["WWW-Authenticate"] == "Bearer"
            assert ask(url, path, X_API_Key=key.decode()).status == 200
            assert ask(url, path, Authorization=f"Bearer {key.decode()}").status == 200
        refused = ask(url, body=photographs[0])
        assert (refused.status, refused.headers["Content-Type"]) == (401, "application/problem+json")
        assert ask(url, body=photographs[0], X_API_Key=key.decode()).status == 200


def test_a_server_with_a_key_becomes_ready(tmp_path):
    repository = tiny_repository(tmp_path / "tiny")
    options = ServerOptions(repository, api_key_file=tmp_path / "key")
    lines = []
    with TritonServer(options, lines.append) as small:
        assert ask(small.http_url, "/v1/models").status == 401
        assert ask(small.http_url, "/v1/models", X_API_Key=(tmp_path / "key").read_text().strip()).status == 200
    assert not [line for line in lines if "did not answer a first request" in line]


def test_the_clients_send_the_key(server, photographs, results, tmp_path, monkeypatch, reference):
    key = "k" * 24
    (tmp_path / "key").write_text(f"{key}\n")
    with running_gateway(server.grpc_url, api_key=key.encode()) as url:

        async def asynchronous(given):
            async with AsyncSegmentationClient(url, "http", api_key=given) as client:
                await client.wait_ready(0)
                return await client.segment(photographs[0])

        command = [sys.executable, "-m", "client", reference.photographs[0], "--protocol=http", f"--url={url}"]
        environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
        for options, variables, status in (
            ([], {}, 2),
            (["--api-key-file", tmp_path / "key"], {}, 0),
            ([], {KEY_VARIABLE: key}, 0),
            (["--api-key-file", tmp_path / "key"], {KEY_VARIABLE: "another" * 4}, 0),
        ):
            given = {**environment, **variables}
            run = subprocess.run([*command, *options], check=False, cwd=ROOT, env=given, capture_output=True, text=True)
            assert run.returncode == status, run.stderr
            assert status == 0 or "the API key is missing" in run.stderr
        assert asyncio.run(asynchronous(key)).encoded_masks == results[0].encoded_masks
        with SegmentationClient(url, "http", api_key=key) as client:
            assert client.segment(photographs[0]).encoded_masks == results[0].encoded_masks
        with pytest.raises(ServerError, match=r"the API key is wrong.*--api-key-file FILE"):
            asyncio.run(asynchronous("wrong" * 5))
        with SegmentationClient(url, "http") as client, pytest.raises(ServerError, match="the API key is missing"):
            client.wait_ready(0)
        monkeypatch.setenv(KEY_VARIABLE, key)  # so do the load tests, whose users know no other way
        with calling("http", url, 10) as transport:
            assert transport.is_ready("segment_int8")
            assert transport.statistics()


def test_hostile_forms_leave_everything_alone(server, photographs):
    """Each is answered with a result or a refusal. Set HOSTILE_FORMS=2000 for the long run."""
    chance = random.Random(20)  # noqa: S311 - no secret
    small = cv2.imencode(".jpg", np.full((40, 60, 3), 90, np.uint8))[1].tobytes()
    right, kind = form(("image", small, "a.jpg"), ("confidence", "0.4"), ("classes", "card"), ("image", small, "b.jpg"))
    pids = server.pid, server.front.pid
    statuses = {}
    for _ in range(HOSTILE_FORMS):
        data, header = bytearray(right), kind
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            place = chance.randrange(len(data))
            data[place : place + chance.choice((0, 1, 4, 60))] = chance.choice(
                (b"", b"\r\n", b"--limit\r\n", b"--limit--", b'"', chance.randbytes(4), bytes(300))
            )
        if chance.random() < 0.1:
            wrong = ("multipart/form-data", 'multipart/form-data; boundary="', kind + "x", "image/*;;=", "\xff")
            header = chance.choice(wrong)
        answer = ask(server.http_url, body=bytes(data), Content_Type=header)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        if answer.status != 200:
            assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(statuses) <= {200, 400, 413, 415}, statuses
    assert {200, 400} <= set(statuses)
    assert (server.pid, server.front.pid) == pids
    assert ask(server.http_url, body=photographs[0]).status == 200
    print(statuses)


def test_the_process_that_draws_is_replaced_and_ends_with_the_gateway(server, photographs):
    command = [sys.executable, "-m", "gateway", "run", "--http-port=0", f"--grpc-url={server.grpc_url}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://(\S+)/", process.stdout.readline()).group(1)

        def draws():
            return ask(url, body=photographs[0], Accept="image/png").status == 200

        def drawers():
            below = psutil.Process(process.pid).children(recursive=True)
            return [one for one in below if "spawn_main" in " ".join(one.cmdline())]

        assert draws()
        (first,) = drawers()
        first.kill()
        wait_for(draws, 20, "a picture")
        (second,) = drawers()
        assert second != first
        process.kill()
    wait_for(lambda: not second.is_running(), 20, "its end")


def test_time_is_said(url, photographs):
    started = time.perf_counter()
    answer = ask(url, body=photographs[0])
    assert 0 < answer.json["server_ms"] < (time.perf_counter() - started) * 1e3
    assert answer.headers["Server-Timing"] == f"tritonserver;dur={answer.json['server_ms']}"
