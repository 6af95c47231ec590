"""``python -m serving``: run the server, or look beforehand whether it can."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

from base.errors import OperatorError
from base.paths import local_path
from pipeline import command_line, contract
from pipeline.command_line import names, seconds, whole
from pipeline.letterbox import RESAMPLING
from repository.signatures import add_trusted_keys
from repository.store import DEFAULT_REPOSITORY, ModelRepository
from serving.preflight import check, preflight
from serving.restarts import RestartPolicy
from serving.secret import secret_in
from serving.server import ServerOptions, TritonServer, add_port_arguments
from serving.supervisor import supervise
from serving.tritonserver import EMBEDDED_VERSION, unpack_tritonserver
from serving.watch import watch_over

MAX_INSTANCES: Final = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if it failed (the fault and its remedy are on standard error); 2 for a wrong command line.
    """
    command_line.prepare()
    options = _parser().parse_args(arguments)
    return command_line.exit_status(lambda: int(options.run(options)), (OperatorError,))


class _Stopped(Exception):
    """A signal asked for the end."""


def _run(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository, options.trusted_keys)
    found = check(repository, options.profile, options.precisions)
    for line in found.lines():
        _say(line)
    served = [status.precision for status in found.models if status.ready]
    server = TritonServer(
        ServerOptions(
            repository=options.repository,
            profile=options.profile,
            precisions=options.precisions,
            host=options.host,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            log_verbose=options.log_verbose,
            preprocess_instances=options.preprocess_instances,
            postprocess_instances=options.postprocess_instances,
            resample=options.resample,
            exit_timeout_s=options.exit_timeout_s,
            visible_secret=options.visible_secret,
            trusted_keys=options.trusted_keys,
            gateway=options.gateway,
            api_key_file=options.api_key_file,
            extra_arguments=tuple(options.arguments),
            admin_secret=secret_in(options.admin_secret_file) if options.admin_secret_file is not None else None,
        ),
        log=_say,
    )
    policy = RestartPolicy(options.restarts)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        _on_signals(signal.SIG_IGN)  # the same signal often comes twice: from a terminal and from a parent
        raise _Stopped

    try:
        _on_signals(stop)
        supervise(
            server,
            policy,
            options.ready_timeout_s,
            on_ready=lambda: command_line.say(_how_to_call(server, options.published, served)),
            say=_say,
            watch=lambda running: watch_over(running, policy, _say),
        )
    except _Stopped:
        print("stopping …", file=sys.stderr, flush=True)
        return 0
    finally:
        _on_signals(signal.SIG_IGN)
        server.stop()


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _say(line: str) -> None:
    command_line.say(line, sys.stderr)


def _preflight(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository, options.trusted_keys)
    found = preflight(repository, options.profile, options.precisions)
    for line in found.lines():
        command_line.say(line)
    return 0 if all(status.ready for status in found.models) else 1


def _unpack(options: argparse.Namespace) -> int:
    unpack_tritonserver(options.folder)
    command_line.say(f"tritonserver {EMBEDDED_VERSION} is in {options.folder}")
    return 0


def _how_to_call(server: TritonServer, published: tuple[str, str, str] | None, served: Sequence[str]) -> str:
    http_url, grpc_url, metrics_url = published or (server.http_url, server.grpc_url, server.metrics_url)
    precision = served[-1]
    names = ", ".join(contract.ensemble_model(name) for name in served)
    key = server.options.api_key_file
    if server.front is not None:
        page = f"\npage: http://{http_url}/"
        header = f' -H "X-API-Key: $(cat {key})"' if key is not None else ""
        curl = f"""with curl; docs: http://{http_url}/docs
  curl -F image=@PHOTO.jpg{header} http://{http_url}/v1/segment"""
    else:
        page = ""
        curl = f"""with curl (a JSON header, then the image behind its length in four bytes, the least first):
{_curl(http_url, contract.ensemble_model(precision))}"""
    return f"""{page}
ready: {names}
  HTTP {http_url}   gRPC {grpc_url}   metrics http://{metrics_url}/metrics

{curl}

segment photographs; overlays and JSON are written to out/:
  python -m client PHOTO.jpg --precision {precision} --url {grpc_url} --out out --json out/result.json

Ctrl-C stops the server."""


def _curl(url: str, model: str) -> str:
    """Shell lines that send one image and get JSON back."""
    header = (
        '{"parameters":{"confidence":0.25},"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES",'
        '"parameters":{"binary_data_size":'
    )
    return "\n".join(
        [
            '  f=PHOTO.jpg; n=$(stat -c %s "$f")',
            f"  h='{header}'$((n+4))'}}}}]}}'",
            """  l=$(printf '\\\\%03o' $((n&255)) $((n>>8&255)) $((n>>16&255)) $((n>>24&255)))""",
            """  { printf %s "$h"; printf "$l"; cat "$f"; } | curl -s --noproxy '*' --data-binary @- \\""",
            f"""    -H "Inference-Header-Content-Length: ${{#h}}" http://{url}/v2/models/{model}/infer""",
        ]
    )


def _published(text: str) -> tuple[str, str, str]:
    """``127.0.0.1:8000,8001,8002`` as three addresses; one of all addresses is called on loopback."""
    match = re.fullmatch(r"([^:,]+):(\d+),(\d+),(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected ADDRESS:HTTP,GRPC,METRICS, such as 127.0.0.1:8000,8001,8002"
        )
    address, http, grpc, metrics = match.groups()
    host = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104 - compared, not bound
    return f"{host}:{http}", f"{host}:{grpc}", f"{host}:{metrics}"


def _parser() -> argparse.ArgumentParser:
    count, precisions = whole(1, MAX_INSTANCES), names(contract.PRECISIONS)
    parser = command_line.Parser(prog="python -m serving", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="start the server, wait until it is ready, stop it on Ctrl-C")
    run.add_argument(
        "--profile", choices=contract.PROFILES, default="cpu", help="where the network runs (default: cpu)"
    )
    run.add_argument("--repository", type=local_path, default=DEFAULT_REPOSITORY, help="model repository")
    run.add_argument("--precisions", type=precisions, help="comma-separated (default: all that are built)")
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add_port_arguments(run, (8000, 8001, 8002))
    run.add_argument(
        "--published",
        type=_published,
        metavar="ADDRESS:HTTP,GRPC,METRICS",
        help="where callers reach the ports, for the messages, if a container publishes them elsewhere",
    )
    run.add_argument(
        "--admin-secret-file",
        type=local_path,
        metavar="FILE",
        help="holds the secret of the restricted APIs; made if missing (default: a new secret at every start)",
    )
    add_trusted_keys(run)
    run.add_argument(
        "--visible-secret",
        action="store_true",
        help="start even where other users of this machine can read the secret in the list of processes",
    )
    run.add_argument(
        "--gateway",
        action="store_true",
        help="answer HTTP through the bounded gateway with every tritonserver (before 2.60 it is always so)",
    )
    run.add_argument(
        "--api-key-file",
        type=local_path,
        metavar="FILE",
        help="callers over HTTP must send the key in it (X-API-Key); made if missing (default: none is asked for)",
    )
    run.add_argument("--preprocess-instances", type=count, help="processes that decode images (default: configured)")
    run.add_argument("--postprocess-instances", type=count, help="processes that make masks (default: configured)")
    run.add_argument(
        "--resample",
        choices=RESAMPLING,
        help="how images are resized: area sees every pixel of a large one, bilinear gives what ultralytics gives "
        "(default: configured)",
    )
    run.add_argument(
        "--exit-timeout-s", type=count, default=10, help="what requests in flight are given at the end (default: 10)"
    )
    run.add_argument("--ready-timeout-s", type=seconds, default=120.0, help="how long to wait until ready")
    run.add_argument(
        "--restarts",
        type=whole(0),
        default=RestartPolicy.restarts,
        metavar="N",
        help="how often in a row a server that died is started again, with growing pauses (default: without end)",
    )
    run.add_argument("--log-verbose", type=whole(0), default=0, help="Triton's verbosity")
    run.add_argument("arguments", nargs="*", metavar="OPTION", help="behind --: options of tritonserver's own")
    run.set_defaults(run=_run)
    looking = commands.add_parser("preflight", help="say which models can be served here, and what fixes the others")
    looking.add_argument("--profile", choices=contract.PROFILES, default="cpu", help="default: cpu")
    looking.add_argument("--repository", type=local_path, default=DEFAULT_REPOSITORY, help="model repository")
    looking.add_argument("--precisions", type=precisions, help="comma-separated (default: all)")
    add_trusted_keys(looking)
    looking.set_defaults(run=_preflight)
    unpacking = commands.add_parser("unpack", help="fetch tritonserver and unpack it into a folder, for an image")
    unpacking.add_argument("folder", type=local_path, help="made; must not exist")
    unpacking.set_defaults(run=_unpack)
    return parser


if __name__ == "__main__":
    sys.exit(main())
