"""The HTTP API: KServe v2 as tritonserver has it, without what acts on the server.

Each route is a request to tritonserver over gRPC. What its own HTTP API answers, status by status, is read from
triton-inference-server/server, ``src/http_server.cc``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import resource
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.hdrs import METH_ALL
from tritonclient.grpc import service_pb2

from gateway import site
from gateway.access import check_key, check_origin
from gateway.bodies import Bodies
from gateway.connections import Connections
from gateway.errors import Refusal
from gateway.json_text import dump
from gateway.kserve import JSON_LENGTH_HEADER, parse_infer, render_infer
from gateway.limits import Limits
from gateway.messages import plain
from gateway.metrics import Metrics, route_of
from gateway.problems import REQUEST_ID, REQUEST_ID_HEADER, problem
from gateway.segment import Segmenter
from gateway.tracing import Tracing
from gateway.triton import Triton
from pipeline.errors import ParameterError

_OFFERED_EXTENSIONS: Final = frozenset(
    (
        "classification",
        "sequence",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
    )
)
_CLOSED: Final = ("repository", "systemsharedmemory", "cudasharedmemory", "trace", "logging")
_KEPT_FILES: Final = 64
"""File descriptors for anything but connections."""

_QUIET: Final = logging.getLogger("gateway.http")
_QUIET.setLevel(logging.CRITICAL)  # otherwise aiohttp writes a traceback for every request that is not HTTP

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_LINGER_S: Final = 2.0
_SHUTDOWN_S: Final = 10.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Answers HTTP requests out of tritonserver's gRPC API. To be made where an event loop runs.

    Args:
        grpc_url: host and port of tritonserver.
        limits: of requests and connections.
        api_key: that requests must have; None asks for none.
        tracing: of requests; None traces nothing.
    """

    def __init__(
        self,
        grpc_url: str,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        api_key: bytes | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._limits = limits
        self._api_key = api_key
        self._tracing = tracing
        self._triton = Triton(grpc_url, limits, tracing)
        self._bodies = Bodies(limits)
        self._metrics = Metrics()
        self._segmenter = Segmenter(self._triton, self._bodies, limits, self._metrics)
        self._connections: Connections | None = None

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._answered])
        application.on_response_prepare.append(_without_version)
        add = application.router.add_route
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        for model in models:  # first, because routes are tried in this order
            application.router.add_post(f"{model}/infer", self._infer, expect_handler=self._continue)
        application.router.add_post("/v1/segment", self._segmenter.segment, expect_handler=self._continue)
        add("GET", "/v1/models", self._segmenter.models)
        add("GET", "/metrics", self._metrics.get)
        application.add_routes(site.routes())
        add("GET", "/v2", self._server_metadata)
        add("GET", "/v2/", self._server_metadata)
        add("GET", "/v2/health/live", self._health("ServerLive", service_pb2.ServerLiveRequest()))
        add("GET", "/v2/health/ready", self._health("ServerReady", service_pb2.ServerReadyRequest()))
        add("GET", "/v2/models/stats", self._statistics)
        for model in models:
            add("GET", model, self._model_metadata)
            add("GET", f"{model}/ready", self._model_ready)
            add("GET", f"{model}/config", self._model_config)
            add("GET", f"{model}/stats", self._statistics)
            add("*", f"{model}/trace/setting", self._closed)
        for name in _CLOSED:
            add("*", f"/v2/{name}{{rest:(/.*)?}}", self._closed)
        return application

    async def listen(self, listener: socket.socket) -> Callable[[], Awaitable[None]]:
        """Take connections from a socket that listens; returns what ends that, after the requests in flight."""
        limits = self._limits
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            logger=_QUIET,
            auto_decompress=False,
            handler_cancellation=True,  # who is gone needs no answer; Triton.infer decides whether the call ends, too
            keepalive_timeout=limits.idle_s,
            lingering_time=_LINGER_S,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            max_headers=limits.headers,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("aiohttp made no server")
        self._connections = Connections(runner.server, min(limits.connections, _spare_files()))
        server = await asyncio.get_running_loop().create_server(self._connections, sock=listener, backlog=1024)

        async def end() -> None:
            server.close()
            await runner.cleanup()
            await self._triton.close()
            self._segmenter.close()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)

        return end

    @web.middleware
    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Count a request, give it an identifier, and mark its connection busy meanwhile."""
        if self._connections is not None:
            self._connections.set_busy(request, True)
        started = time.perf_counter()
        _identify(request)
        try:
            return self._finished(request, await self._traced(request, handler), started)
        finally:
            if self._connections is not None:
                self._connections.set_busy(request, False)

    def _finished(self, request: web.Request, response: web.StreamResponse, started: float) -> web.StreamResponse:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
        self._metrics.count(request, response.status, time.perf_counter() - started)
        return response

    async def _traced(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._tracing is None:
            return await self._response(request, handler)
        method = request.method if request.method in METH_ALL else "_OTHER"
        with self._tracing.request(method, route_of(request), request.headers, request[REQUEST_ID]) as span:
            response = await self._response(request, handler)
            self._tracing.answered(span, response.status)
            return response

    async def _response(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Turn every error into JSON with a status."""
        try:
            self._check_access(request)
            return await handler(request)
        except Refusal as refusal:
            return _refused(request, refusal)
        except ParameterError as error:
            return _error(request, HTTPStatus.BAD_REQUEST, str(error))
        except web.HTTPException as error:  # no such route, or not with this method
            response = _error(request, error.status, f"{error.reason}: {request.method} {request.path[:200]}")
            response.headers.update({name: error.headers[name] for name in ("Allow",) if name in error.headers})
            return response
        except Exception:  # the caller learns nothing of it
            traceback.print_exc()
            return _error(request, HTTPStatus.INTERNAL_SERVER_ERROR, "the HTTP front failed; its log says why")

    def _check_access(self, request: web.Request) -> None:
        check_origin(request)
        if self._api_key is not None:
            check_key(request, self._api_key, site.is_public(request.path))

    async def _continue(self, request: web.Request) -> web.StreamResponse | None:
        """Answer ``Expect: 100-continue``, which curl sends in front of a megabyte, unless the body is refused."""
        started = time.perf_counter()
        _identify(request)  # what is refused here does not get to the middleware
        try:
            self._check_access(request)
            self._bodies.check_head(request)
            if request.headers.get("Expect", "").lower() != "100-continue":
                raise Refusal("Expect; allowed: 100-continue", HTTPStatus.EXPECTATION_FAILED)
        except Refusal as refusal:
            return self._finished(request, _refused(request, refusal), started)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None

    async def _infer(self, request: web.Request) -> web.Response:
        async with self._bodies.read(request) as body:
            model, version = _model(request)
            call = parse_infer(model, version, body, request.headers.get(JSON_LENGTH_HEADER), self._limits)
            answer = render_infer(await self._triton.infer(call.serialized()), call, self._limits)
        if answer.json_bytes is None:
            return _json(answer.body)
        headers = {"Content-Type": "application/octet-stream", JSON_LENGTH_HEADER: str(answer.json_bytes)}
        return web.Response(body=answer.body, headers=headers)

    def _health(self, method: str, question: Any) -> _Handler:
        async def handle(request: web.Request) -> web.Response:
            del request
            answer = await self._triton.ask(method, question)
            return web.Response(status=HTTPStatus.OK if next(iter(plain(answer).values())) else HTTPStatus.BAD_REQUEST)

        return handle

    async def _server_metadata(self, request: web.Request) -> web.Response:
        del request
        found = plain(await self._triton.ask("ServerMetadata", service_pb2.ServerMetadataRequest()))
        names = (name.partition("(")[0] for name in found["extensions"])
        kept = [full for full, name in zip(found["extensions"], names, strict=True) if name in _OFFERED_EXTENSIONS]
        return _json(dump(found | {"extensions": kept}))

    async def _model_metadata(self, request: web.Request) -> web.Response:
        question = service_pb2.ModelMetadataRequest()
        return _json(dump(plain(await self._ask_model(request, "ModelMetadata", question))))

    async def _model_config(self, request: web.Request) -> web.Response:
        answer = await self._ask_model(request, "ModelConfig", service_pb2.ModelConfigRequest())
        return _json(dump(plain(answer.config)))

    async def _model_ready(self, request: web.Request) -> web.Response:
        answer = await self._ask_model(request, "ModelReady", service_pb2.ModelReadyRequest())
        return web.Response() if answer.ready else _error(request, HTTPStatus.BAD_REQUEST, "Model version not ready")

    async def _statistics(self, request: web.Request) -> web.Response:
        question = service_pb2.ModelStatisticsRequest()
        return _json(dump(plain(await self._ask_model(request, "ModelStatistics", question))))

    async def _ask_model(self, request: web.Request, method: str, question: Any) -> Any:
        question.name, question.version = _model(request)
        return await self._triton.ask(method, question)

    async def _closed(self, request: web.Request) -> web.Response:
        return _error(
            request,
            HTTPStatus.FORBIDDEN,
            f"{request.path[:200]} is not offered over HTTP; over gRPC it needs the admin secret",
        )


def _model(request: web.Request) -> tuple[str, str]:
    """Name and version in the path; either may be empty."""
    name, version = (request.match_info.get(part, "") for part in ("model", "version"))
    try:
        (name + version).encode()
    except UnicodeEncodeError:
        raise Refusal("the path is no UTF-8") from None
    return name, version


async def _without_version(request: web.BaseRequest, response: web.StreamResponse) -> None:
    del request
    response.headers.popall("Server", None)  # it names the versions of Python and aiohttp


def _json(body: bytes, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _identify(request: web.Request) -> None:
    """Give a request its caller's identifier, or a new one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    response = _error(request, refusal.status, refusal.message)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _error(request: web.Request, status: int, message: str) -> web.Response:
    """An error as Triton has it, and anywhere else than in its API as RFC 9457 does."""
    if request.path != "/v2" and not request.path.startswith("/v2/"):
        return problem(request, status, message)
    return _json(dump({"error": message.encode(errors="replace").decode()}), status)


def _spare_files() -> int:
    """File descriptors for connections; as many as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - _KEPT_FILES) if soft != resource.RLIM_INFINITY else sys.maxsize


async def run(
    listener: socket.socket,
    grpc_url: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    api_key: bytes | None = None,
    tracing: Tracing | None = None,
) -> None:
    """Answer until SIGTERM or SIGINT comes; requests in flight are answered first."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    end = await Gateway(grpc_url, limits, api_key, tracing).listen(listener)
    await stopped.wait()
    await end()
