"""Starts tritonserver, waits until it is ready, and stops it without leaving anything behind."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from base.allocator import allocator_environment
from base.files import private_folder
from base.names import ADMIN_HEADER, SHARED_MEMORY, SHM_PREFIX_VARIABLE, STATE_NAME
from pipeline import contract
from pipeline.letterbox import RESAMPLING
from repository.errors import RepositoryError
from repository.integrity import version_faults
from repository.profiles import PROFILES
from repository.running import RunningServer, clear_after, running_servers, scratch_folder
from repository.servable import models_to_load
from repository.store import CONFIG_NAME, CONFIG_NAMES, RESAMPLE, ModelRepository, read_config
from serving.environment import check_ports, check_shared_memory, free_ports, is_free, resolve_host
from serving.errors import ServingError
from serving.front import HttpFront, knows_secret
from serving.gpu_steps import COUNTS, POOL_OPTION, STEPS, obstacle, pool_options, put_on_gpu
from serving.health import warm_up
from serving.hidden_arguments import STAND_IN, CannotHide, start_hidden
from serving.http_call import http_call
from serving.lifetime import end_with
from serving.memory import MEMORY_DEATHS, end_first
from serving.private_files import PRIVATE_UMASK, has_filter, keep_files_private
from serving.repository_view import make_view
from serving.safe_names import SafeNames
from serving.secret import new_secret, secret_in
from serving.tritonserver import Installation, find_tritonserver

RESTRICTED_APIS: Final = "model-repository,shared-memory,trace,logging"

_HTTP_OPTIONS: Final = ("--allow-http", "--http-")

MAX_REQUEST_BYTES: Final = 128 * 1024 * 1024
"""Of one HTTP request, on servers that can bound it; single images are bounded in ``preprocess/config.pbtxt``."""

NO_LATENCY_BOUND_MS: Final = 10**9
"""For measurements: on a shared machine, no request may be refused."""

_PROTOCOLS: Final = ("http", "grpc", "metrics")
_PORT_ATTEMPTS: Final = 3
_ROUTINE: Final = "CudaDriverHelper has not been initialized"  # said at every start without a GPU
_STUB_TIMEOUT_S: Final = 60  # for a process of the Python backend to start, to load its model, or to end
_SHM_DEFAULT_BYTES: Final = 1 << 20  # shared memory that such a process starts with; it grows as needed
_KEPT_LOG_LINES: Final = 200
_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ServerOptions:
    """How to run a server.

    Attributes:
        repository: the model repository.
        profile: cpu, tensorrt or cuda.
        precisions: which ones to serve; None serves all that are built.
        host: IPv4 address to listen on, or a name that has one.
        http_port: 0 takes a free one; likewise the other ports.
        grpc_port: see ``http_port``.
        metrics_port: see ``http_port``.
        exit_timeout_s: how long requests in flight may take at the end.
        log_verbose: Triton's verbosity, 0 is quiet.
        preprocess_instances: processes that decode images; None takes the model's configuration, likewise the next.
        postprocess_instances: processes that make masks.
        resample: how images are resized, one of :data:`pipeline.letterbox.RESAMPLING`; None takes the configuration.
        max_latency_ms: bound of admission control; None takes the model's configuration.
        admin_secret: opens the restricted APIs; None makes a random one.
        visible_secret: start even where other users of this machine can read the secret in the list of processes.
        trusted_keys: file of public keys, of which one must have signed each version; None takes the file that the
            environment names, if it names one.
        gateway: put the gateway in front of HTTP whatever the server's version is; before 2.60 it always is.
        api_key_file: holds the key that callers over HTTP must send, and is made if missing; None asks for none. With
            one, the gateway is in front, too.
        extra_arguments: passed to tritonserver, relative paths made absolute; metrics must stay on, readiness is read
            there.
    """

    repository: Path
    profile: str = "cpu"
    precisions: tuple[str, ...] | None = None
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    exit_timeout_s: int = 10
    log_verbose: int = 0
    preprocess_instances: int | None = None
    postprocess_instances: int | None = None
    resample: str | None = None
    max_latency_ms: int | None = None
    admin_secret: str | None = None
    visible_secret: bool = False
    trusted_keys: Path | None = None
    gateway: bool = False
    api_key_file: Path | None = None
    extra_arguments: tuple[str, ...] = ()


def add_port_arguments(parser: Any, defaults: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Declare ``--http-port``, ``--grpc-port`` and ``--metrics-port``; 0 takes a free one."""
    for name, default in zip(_PROTOCOLS, defaults, strict=True):
        parser.add_argument(
            f"--{name}-port", type=int, default=default, metavar="N", help=f"0 takes a free one (default: {default})"
        )


class TritonServer:
    """One tritonserver process and its Python backend's stubs.

    Start it from a thread that lives as long as the server should: the kernel ends the server with that thread, so that
    nothing outlives a parent that was killed.

    Attributes:
        options: how it runs.
        front: what answers HTTP; None before the start, and where tritonserver does it itself.
        admin_secret: value of :data:`ADMIN_HEADER`.
    """

    def __init__(self, options: ServerOptions, log: Callable[[str], None] | None = None) -> None:
        """Prepare a server.

        Args:
            options: how to run it.
            log: gets each line of the server's log; None keeps only the last lines, for errors.
        """
        self.options = options
        self.admin_secret = options.admin_secret or new_secret()
        self._log = log
        self._lines: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.front: HttpFront | None = None
        self._key_header: dict[str, str] = {}
        self._shm_prefix = ""
        self._asked_ports = (options.http_port, options.grpc_port, options.metrics_port)
        self._ports = (0, 0, 0)
        self._host = options.host
        self._state_file: Path | None = None
        self._models: list[str] = []
        self._steps_on_gpu = False
        self._served = options.repository

    def __enter__(self) -> TritonServer:
        """Start and wait until ready."""
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are loaded, ensembles included; empty before the start."""
        return tuple(self._models)

    @property
    def http_url(self) -> str:
        """Host and port of the HTTP endpoint."""
        return self._url(0)

    @property
    def grpc_url(self) -> str:
        """Host and port of the gRPC endpoint."""
        return self._url(1)

    @property
    def metrics_url(self) -> str:
        """Host and port of the metrics endpoint."""
        return self._url(2)

    @property
    def pid(self) -> int | None:
        """Process number of tritonserver; None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def state_folder(self) -> Path:
        """The server's folder in shared memory: its admission control, and what its Python processes are doing."""
        return SHARED_MEMORY / f"{self._shm_prefix}{STATE_NAME}"

    def start(self) -> None:
        """Start the process; returns at once.

        Raises:
            ServingError: nothing to serve, a port in use, or the machine cannot run the server. Nothing is left of it.
        """
        front = self.front
        try:
            self._start()
        except BaseException:
            self._stop_server()
            if front is None:  # else it goes on, see restart
                self._stop_front()
            raise

    def _start(self) -> None:
        options = self.options
        repository = ModelRepository.existing(options.repository.resolve(), options.trusted_keys)
        _check_resampling(repository, options)
        self._models = models = models_to_load(repository, options.profile, options.precisions)
        self._host = resolve_host(options.host)
        given = self._asked_ports
        names = (f"--{name}-port (make: {name.upper()}_PORT)" for name in _PROTOCOLS)
        asked = dict(zip(names, given, strict=True))
        if self.front is not None:  # it kept listening while the server was restarted
            asked.pop(next(iter(asked)))
        check_ports(self._host, asked)
        check_shared_memory()
        # Last of the checks: it may fetch the server.
        installation = find_tritonserver()
        profile = PROFILES[options.profile]
        installation.check_backend("tensorrt" if profile.loads_plans else "python")
        running_servers()  # removes what killed servers left
        for precision in contract.PRECISIONS:
            for version in repository.promoted(precision, options.profile):
                repository.drop_compiled(repository.version_folder(precision, version))
                if repository.trusted is not None:  # at every start, also after a crash
                    _refuse_untrusted(repository, precision, version)
        if options.gateway or options.api_key_file is not None or not installation.has_request_bound:
            _refuse_http_options(options.extra_arguments)
            if options.api_key_file is not None:
                self._key_header = {"X-API-Key": secret_in(options.api_key_file)}
            self.front = self.front or HttpFront(self._host, given[0], self._take_line, options.api_key_file)
            given = (self.front.port, *given[1:])
        spare = free_ports(self._host, len(given), given)
        self._ports = tuple(  # type: ignore[assignment]  # always three
            port or free for port, free in zip(given, spare, strict=True)
        )
        self._shm_prefix = f"segmentation_{secrets.token_hex(4)}_"
        self._lines.clear()
        links = SafeNames(scratch_folder(self._shm_prefix))
        environment = {**_environment(installation, repository, links), SHM_PREFIX_VARIABLE: self._shm_prefix}
        self._steps_on_gpu = profile.gpu_steps and self._can_put_steps_on_gpu(repository, environment)
        self._served = links.of(self._served_repository(links.folder / "repository"))
        private_folder(self.state_folder)  # now, while no other user can know its name
        self._process = self._start_process(
            self._command(links.installation(installation), self._served, models), environment
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()
        if not has_filter(self._process.pid):
            self._take_line("this kernel takes no seccomp filter: other users of this machine can read callers' images")
        if self.front is not None:
            self.front.start(self.grpc_url)
        server = RunningServer(
            pid=self._process.pid,
            profile=options.profile,
            repository=str(repository.path),
            http=self.http_url,
            grpc=self.grpc_url,
            metrics=self.metrics_url,
            admin_secret=self.admin_secret,
            shm_prefix=self._shm_prefix,
        )
        self._state_file = server.write()

    def _can_put_steps_on_gpu(self, repository: ModelRepository, environment: dict[str, str]) -> bool:
        reason = obstacle(repository, self.options.resample, environment)
        names = " and ".join(STEPS)
        self._take_line(f"{names} run on the {f'processor: {reason}' if reason else 'GPU'}")
        return reason is None

    def _start_process(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        prepare = functools.partial(_prepare_child, os.getpid())
        options: dict[str, Any] = {
            # The Python backend's processes search their working folder for modules first; the caller's may hold
            # another project's.
            "cwd": _ROOT,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "errors": "replace",
            "start_new_session": True,
            "umask": PRIVATE_UMASK,
        }
        try:
            return start_hidden(command, self.admin_secret, environment, prepare, **options)
        except CannotHide as error:
            seen = f"other users of this machine can read the admin secret in tritonserver's arguments: {error}"
            if not self.options.visible_secret:
                raise ServingError(
                    f"{seen}. Allow ptrace (kernel.yama.ptrace_scope 0 or 1, a container's seccomp profile), "
                    "or start with --visible-secret where there are no other users"
                ) from error
            self._take_line(seen)
        return subprocess.Popen(command, env=environment, preexec_fn=prepare, **options)  # noqa: PLW1509 - no locks

    def restart(self) -> None:
        """Stop what is left of the server and start it again where it was: same ports, same secret.

        The gateway goes on, and answers that the server is not available.

        Raises:
            ServingError: see :meth:`start`.
        """
        self._stop_server()
        self._asked_ports = self._ports
        self.start()

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until every model is ready, and send each ensemble a first picture (:func:`serving.health.warm_up`).

        Raises:
            ServingError: the server ended, or is not ready in time; the message ends with the last lines of its log.
        """
        deadline = time.monotonic() + timeout_s
        attempts = 1
        while not self.is_ready():
            if self.front is not None:
                self.front.look(timeout_s)
            if self._process is None or self._process.poll() is not None:
                if attempts < _PORT_ATTEMPTS and self._lost_a_port():
                    attempts += 1
                    self.stop()
                    self.start()
                    continue
                how = f" ({how_ended(self._process.returncode)})" if self._process is not None else ""
                cause = MEMORY_DEATHS.cause()
                raise ServingError(f"tritonserver ended before it was ready{how}{cause}{self.last_words()}")
            if time.monotonic() > deadline:
                loading = "".join(f"; {name} is not loaded" for name in self._models if not self._has_loaded(name))
                raise ServingError(f"tritonserver was not ready within {timeout_s:.0f} s{loading}{self.last_words()}")
            time.sleep(0.1)
        self._check_hidden()
        for model, fault in warm_up(self.http_url, self._models, self._key_header).items():
            self._take_line(f"{model} did not answer a first request: {fault}")

    def _check_hidden(self) -> None:
        """Refuse a script on PATH that started the server with the arguments that it was given itself."""
        if self.options.visible_secret:
            return
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if self.admin_secret.encode() in (process / "cmdline").read_bytes():
                    raise ServingError(
                        f"other users of this machine can read the admin secret in the arguments of process "
                        f"{process.name}. If a script started it, put the folder of the program itself on PATH, or "
                        "start with --visible-secret"
                    )

    def is_ready(self) -> bool:
        """Whether all models are ready, and this server says so: another one on its port does not know its secret."""
        try:
            return (
                http_call(self.http_url, "/v2/health/ready")[0] == HTTPStatus.OK
                and knows_secret(self.grpc_url, self.admin_secret)
                # The endpoint that is opened last.
                and http_call(self.metrics_url, "/metrics")[0] == HTTPStatus.OK
            )
        except OSError:
            return False

    def _url(self, index: int) -> str:
        # A server can listen on all addresses of a machine, but is called at one.
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104 - compared, not bound
        return f"{host}:{self._ports[index]}"

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the process ends by itself; returns its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return self._process.wait(timeout_s) if self._process is not None else 0

    def stop(self) -> None:
        """End the server: requests in flight finish, then the stubs, then shared memory is cleared."""
        self._stop_server()
        self._stop_front()

    def _stop_front(self) -> None:
        if self.front is not None:
            self.front.stop()
            self.front = None

    def _stop_server(self) -> None:
        if self._process is not None:
            self._end_process(self._process)
            self._process = None
        clear_after(self._shm_prefix)
        if self._state_file is not None:
            self._state_file.unlink(missing_ok=True)

    def _end_process(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(self.options.exit_timeout_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()
        # Stubs are in the server's process group; none is left after a clean end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._reader is not None:
            self._reader.join(5)

    def model_config(self, model: str) -> dict[str, Any]:
        """A model's configuration on disk, as this server takes it, in protobuf's JSON form.

        Raises:
            ServingError: it is missing or broken.
        """
        folder = self._served / model
        own = folder / CONFIG_NAMES[self.options.profile]
        try:
            config = read_config(own if own.exists() else folder / CONFIG_NAME)
        except RepositoryError as error:
            raise ServingError(str(error)) from error
        return dict(json_format.MessageToDict(config, preserving_proto_field_name=True))

    def _served_repository(self, view: Path) -> Path:
        """The repository itself, or a view of it with what the options change."""
        counts = {
            contract.PREPROCESS_MODEL: self.options.preprocess_instances,
            contract.POSTPROCESS_MODEL: self.options.postprocess_instances,
        }
        asked = {model: count for model, count in counts.items() if count is not None}
        if self._steps_on_gpu:
            asked = {**COUNTS, **asked}
        parameters: dict[str, dict[str, str]] = {}
        if self.options.max_latency_ms is not None:
            parameters[contract.ADMISSION_MODEL] = {"max_latency_ms": str(self.options.max_latency_ms)}
        if self.options.resample is not None:
            parameters[contract.PREPROCESS_MODEL] = {RESAMPLE: self.options.resample}
        changes = dict.fromkeys(STEPS, put_on_gpu) if self._steps_on_gpu else {}
        repository = self.options.repository.resolve()
        return make_view(repository, view, asked, parameters, changes) if asked or parameters else repository

    def _command(self, installation: Installation, repository: Path, models: Sequence[str]) -> list[str]:
        options = self.options
        http_port, grpc_port, metrics_port = self._ports
        profile = PROFILES[options.profile]
        # Triton takes the secret only from its command line; start_hidden keeps it out of sight.
        secret = f"{RESTRICTED_APIS}:{ADMIN_HEADER}={self.admin_secret}"
        http = ["--allow-http=false"]
        if self.front is None:
            http = [f"--http-address={self._host}", f"--http-port={http_port}", f"--http-restricted-api={secret}"]
            http += [f"--http-max-input-size={MAX_REQUEST_BYTES}"]
        command = [
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={installation.backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            # All at once; by default four at a time, and models wait for the processes of others to start.
            f"--model-load-thread-count={len(models)}",
            "--disable-auto-complete-config",
            *http,
            f"--grpc-address={self._host}",
            f"--grpc-port={grpc_port}",
            f"--metrics-address={self._host}",
            f"--metrics-port={metrics_port}",
            f"--grpc-restricted-protocol={secret}",
            # Requests that are kept for reuse keep the memory of the largest that each has ever been.
            "--grpc-infer-allocation-pool-size=0",
            f"--exit-timeout-secs={options.exit_timeout_s}",
            f"--log-verbose={options.log_verbose}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--backend-config=python,shm-default-byte-size={_SHM_DEFAULT_BYTES}",
            f"--backend-config=python,stub-timeout-seconds={max(_STUB_TIMEOUT_S, profile.least_load_timeout_s)}",
        ]
        if profile.config_name != CONFIG_NAME:
            command += [f"--model-config-name={Path(profile.config_name).stem}"]
        if not profile.needs_gpu:
            command += ["--allow-gpu-metrics=false"]
        if self._steps_on_gpu and not any(argument.startswith(POOL_OPTION) for argument in options.extra_arguments):
            command += pool_options()
        return [*command, *map(_with_absolute_path, options.extra_arguments)]

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._take_line(line.rstrip("\n"))

    def _take_line(self, line: str) -> None:
        line = line.replace(self.admin_secret, STAND_IN)  # of a message about the options, for example
        self._lines.append(line)
        if self._log is not None:
            try:
                self._log(line)
            except (OSError, ValueError):  # nobody reads the log any longer; the server must not block on it
                self._log = None

    def _lost_a_port(self) -> bool:
        """Whether a port that was free when it was chosen has been taken since."""
        pairs = list(zip(self._asked_ports, self._ports, strict=True))
        held = 1 if self.front is not None else 0  # HTTP, first of the ports
        return any(wanted == 0 and not is_free(self._host, port) for wanted, port in pairs[held:])

    def _has_loaded(self, model: str) -> bool:
        return any(f"successfully loaded '{model}'" in line for line in self._lines)

    def last_words(self) -> str:
        """The relevant lines at the end of the log, to append to an error; empty if there are none."""
        if self._reader is not None and self.pid is None:
            self._reader.join(5)
        lines = [line for line in self._lines if _ROUTINE not in line]
        errors = [at for at, line in enumerate(lines) if line[:1] in ("E", "F") or "error" in line.lower()][-8:]
        last = range(max(0, len(lines) - 8), len(lines))
        if self._process is not None and (self._process.poll() or 0) < 0:  # it may have had no time for an error
            shown = sorted({*errors, *last[-4:]})
        else:
            shown = errors or [*last]
        lines = [lines[at] for at in shown]
        return ". Its log ends:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def how_ended(status: int) -> str:
    """A process's return code in words.

    Example:
        >>> how_ended(3), how_ended(-9)
        ('with status 3', 'by signal SIGKILL')
    """
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by signal {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _refuse_untrusted(repository: ModelRepository, precision: str, version: int) -> None:
    for folder in repository.step_folders():
        repository.drop_compiled(folder)
    for fault in version_faults(repository, precision, version):
        raise ServingError(f"nothing is served: {fault}")


def _prepare_child(parent: int) -> None:
    end_with(parent)
    keep_files_private()
    end_first()


def model_environment() -> dict[str, str]:
    """Environment variables that the server and its Python models run under, unless the caller's own set them.

    The instances of a model are its threads, so maths libraries must not start more in each. For memory, see
    :func:`base.allocator.allocator_environment`.
    """
    return {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **allocator_environment()}


def _refuse_http_options(arguments: Sequence[str]) -> None:
    wrong = next((argument for argument in arguments if argument.startswith(_HTTP_OPTIONS)), None)
    if wrong is not None:
        raise ServingError(
            f"{wrong.partition('=')[0]} behind --: this server answers HTTP through the gateway only; leave it out "
            "(--http-port in front of -- chooses the port)"
        )


def _with_absolute_path(argument: str) -> str:
    """Make a relative path in an option absolute: tritonserver does not run in the caller's folder."""
    name, equals, value = argument.partition("=")
    path = Path(value)
    is_path = path.exists() or ("/" in value and path.parent.is_dir())
    return f"{name}={path.absolute()}" if equals and value and is_path else argument


def _check_resampling(repository: ModelRepository, options: ServerOptions) -> None:
    """Refuse bilinear samples where the GPU resizes: its kernel averages over areas alone."""
    if not PROFILES[options.profile].fused:
        return
    parameters = read_config(repository.shared_config(contract.PREPROCESS_MODEL)).parameters
    asked, where = options.resample, f"--{RESAMPLE}"
    if asked is None and RESAMPLE in parameters:
        asked, where = parameters[RESAMPLE].string_value, f"{RESAMPLE!r} in {contract.PREPROCESS_MODEL}/{CONFIG_NAME}"
    if asked not in (None, RESAMPLING[0]):
        raise ServingError(
            f"{where} is {asked!r}, and the profile {options.profile} resizes images on the GPU, by averaging over "
            f"areas only; allowed there: {RESAMPLING[0]}. Serve with another profile, or with --{RESAMPLE} "
            f"{RESAMPLING[0]}"
        )


def _environment(installation: Installation, repository: ModelRepository, links: SafeNames) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PYTHONSAFEPATH", None)  # the Python backend's processes find this project by their working folder
    # The server's own in front; behind what the caller chose, the folder of libpython, which may be the system's.
    own, *others = (*map(str, links.installation(installation).library_path), "")
    libraries = [own, environment.get("LD_LIBRARY_PATH", ""), *others]
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    # The stub finds this virtual environment through the first python3 on PATH.
    environment["PATH"] = f"{links.python()}:{environment.get('PATH', '')}"
    for name, value in model_environment().items():
        environment.setdefault(name, value)
    # OpenCV's own bound, in case it computes another size of an image than the check of the header did.
    parameters = read_config(repository.shared_config(contract.PREPROCESS_MODEL)).parameters
    if "max_image_pixels" in parameters:
        environment["CV_IO_MAX_IMAGE_PIXELS"] = parameters["max_image_pixels"].string_value
    return environment
