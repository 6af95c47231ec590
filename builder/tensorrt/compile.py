"""Builds a TensorRT plan from an ONNX file, with the calls that TensorRT 10, 11 and TensorRT-RTX share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from base.files import write_atomically
from builder.settings import PlanSettings
from builder.tensorrt.advice import memory_ways_out
from builder.tensorrt.errors import LogLine, OnnxParseError, PlanBuildError, PlanMemoryError, TensorRTError
from builder.tensorrt.failures import out_of_memory
from builder.tensorrt.layers import LayerCounts, convolution_names, count_engine, count_network
from builder.tensorrt.lazy import trt, use
from pipeline import contract
from repository.flavor import Flavor

_LOGGER = logging.getLogger(__name__)
_MIB: Final = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class CompiledPlan:
    """A serialized plan and how it was built.

    Attributes:
        plan: the bytes to write.
        counts: layers and convolutions per precision.
        flavor: name of the TensorRT flavor, such as ``tensorrt-11``.
        tensorrt_version: its version.
        batches: smallest, preferred and largest batch.
        can_run_here: whether the plan could be deserialized on this machine.
        log: every line that the builder logged.
    """

    plan: bytes = field(repr=False)
    counts: LayerCounts
    flavor: str
    tensorrt_version: str
    batches: tuple[int, int, int]
    can_run_here: bool
    log: tuple[LogLine, ...] = field(repr=False)


def compile_plan(onnx_path: Path, settings: PlanSettings, flavor: Flavor) -> CompiledPlan:
    """Build a plan.

    Args:
        onnx_path: network with the one input ``images``, uint8 [batch, height, width, 3], batch dynamic. Its types
            are the plan's types: the network is strongly typed.
        settings: profile, memory and compatibility.
        flavor: TensorRT to build with.

    Returns:
        The plan. Layer counts come from the engine inspector where the plan can be deserialized here and says enough
        (that needs a GPU), else from the parsed network; ``counts.source`` says which.

    Raises:
        OnnxParseError: TensorRT does not understand the network.
        PlanMemoryError: memory does not suffice; the message names workspace, batch and the options that change them.
        PlanBuildError: it builds no plan from it; the error carries the log.
        TensorRTError: the input does not follow the contract, or a setting does not fit the flavor.
    """
    lines: list[LogLine] = []
    try:
        return _compile(onnx_path, settings, flavor, lines)
    except (TensorRTError, KeyboardInterrupt) as error:
        # The frames behind an error hold TensorRT objects. Free them now: later, another build may be calling back
        # into Python with TensorRT's locks held.
        raise error.with_traceback(None) from None


def _compile(onnx_path: Path, settings: PlanSettings, flavor: Flavor, lines: list[LogLine]) -> CompiledPlan:
    use(flavor)
    logger = _make_logger(lines)
    builder = trt.Builder(logger)
    # TensorRT 10 builds a weakly typed network without this flag; 11 accepts and ignores it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # owns the weights: keep it until the plan is built
    _parse(onnx_path, parser, flavor, lines)
    shape = _image_shape(network)
    config = builder.create_builder_config()
    _configure(builder, config, settings, flavor, shape)
    # TensorRT-RTX times kernels on the machine that runs the plan; timing cache calls do nothing there.
    timing_cache = None if flavor.is_rtx else settings.timing_cache
    _load_timing_cache(config, timing_cache)
    serialized = _maybe(builder.build_serialized_network(network, config))
    if serialized is None:
        raise _failure(onnx_path, flavor, settings, lines)
    plan = bytes(serialized)
    _save_timing_cache(config, timing_cache)
    counts, can_run_here = _count(network, plan, logger, lines)
    _LOGGER.info("%s built a plan of %.1f MB", flavor, len(plan) / 1e6)
    return CompiledPlan(
        plan=plan,
        counts=counts,
        flavor=flavor.name,
        tensorrt_version=flavor.version_text,
        batches=settings.batches,
        can_run_here=can_run_here,
        log=tuple(lines),
    )


def _maybe(answer: T) -> T | None:
    """The same object; the stubs leave out that TensorRT answers None when a call fails."""
    return answer


def _make_logger(lines: list[LogLine]) -> trt.ILogger:

    class CapturingLogger(trt.ILogger):
        """Keeps every line; TensorRT calls it from several threads, and appending is atomic."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            line = LogLine(severity.name, msg.rstrip())
            lines.append(line)
            if line.is_error:
                _LOGGER.debug("TensorRT: %s", line.text)

    return CapturingLogger()


def _parse(onnx_path: Path, parser: trt.OnnxParser, flavor: Flavor, lines: list[LogLine]) -> None:
    if not onnx_path.is_file():
        raise TensorRTError(f"{onnx_path}: no such ONNX file")
    parsed = parser.parse_from_file(str(onnx_path))
    if parsed and not parser.num_errors:
        return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"node {error.node_name() or error.node()!r} ({error.node_operator() or 'unknown operator'})"
        # Of an operator that it does not have, TensorRT-RTX 1.7 says no more than "false".
        unsupported = error.code() == trt.ErrorCode.UNSUPPORTED_NODE
        problems.append(f"{where}: {f'{flavor} has no such operator' if unsupported else error.desc()}")
    shown = "\n  ".join(problems) or "no reason given"
    raise OnnxParseError(
        f"{flavor} does not parse {onnx_path.name}:\n  {shown}\nExport the model again with another opset, upgrade "
        "TensorRT, or build with --profile cpu, which needs none",
        tuple(problems),
        tuple(lines),
    )


def _image_shape(network: trt.INetworkDefinition) -> tuple[int, int, int]:
    """Height, width and channels of the input, which must be the contract's ``images``."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shown = ", ".join(f"{tensor.name} {tensor.dtype.name} {_dims(tensor)}" for tensor in inputs) or "none"
    expected = f"{contract.IMAGES.name} UINT8 [-1, height, width, 3]"
    if len(inputs) != 1 or inputs[0].name != contract.IMAGES.name or inputs[0].dtype != trt.DataType.UINT8:
        raise TensorRTError(f"the network's inputs are: {shown}; expected: {expected}. Graft the ends on first")
    dims = _dims(inputs[0])
    if len(dims) != 4 or dims[0] != -1 or dims[3] != 3 or min(dims[1:]) < 1:
        raise TensorRTError(f"the network's input is: {shown}; expected: {expected}, only the batch dynamic")
    return dims[1], dims[2], dims[3]


def _dims(tensor: trt.ITensor) -> list[int]:
    return [int(tensor.shape[index]) for index in range(len(tensor.shape))]


def _configure(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    settings: PlanSettings,
    flavor: Flavor,
    shape: tuple[int, int, int],
) -> None:
    if flavor.is_rtx and (settings.version_compatible or settings.hardware_compatible != "none"):
        raise TensorRTError(
            f"{flavor} has no version or hardware compatible plans (its plans are portable between RTX GPUs); leave "
            "version_compatible and hardware_compatible out"
        )
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    # Names and types of every layer for the inspector; it does not slow the plan down.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif settings.hardware_compatible == "same_compute_capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    profile = builder.create_optimization_profile()
    profile.set_shape(
        contract.IMAGES.name,
        trt.Dims4(settings.min_batch, *shape),
        trt.Dims4(settings.opt_batch, *shape),
        trt.Dims4(settings.max_batch, *shape),
    )
    if config.add_optimization_profile(profile) < 0:
        raise TensorRTError(f"{flavor} refuses the batch profile of {settings}")


def _load_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    content = path.read_bytes() if path.is_file() else b""
    cache = _maybe(config.create_timing_cache(content))
    if cache is None or not config.set_timing_cache(cache, False):
        # Another TensorRT or GPU wrote it. It only saves time, so build without it and write a new one.
        _LOGGER.warning("%s: not a timing cache of this TensorRT and GPU; starting a new one", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    cache = _maybe(config.get_timing_cache()) if path is not None else None
    if path is None or cache is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, bytes(cache.serialize()))


def _count(
    network: trt.INetworkDefinition, plan: bytes, logger: trt.ILogger, lines: list[LogLine]
) -> tuple[LayerCounts, bool]:
    """Layer counts, and whether the plan can be deserialized here."""
    logged = len(lines)
    engine = _maybe(trt.Runtime(logger).deserialize_cuda_engine(plan))
    if engine is None:
        reason = next((line.text for line in lines[logged:] if line.is_error), "no reason given")
        # No GPU, or one that this flavor does not run on. The plan is whole; the lines are not of its build.
        _LOGGER.info("the plan cannot be deserialized on this machine: %s", reason)
        del lines[logged:]
        return count_network(network), False
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    counts = count_engine(information, convolution_names(network))
    return counts or count_network(network), True


def _failure(onnx_path: Path, flavor: Flavor, settings: PlanSettings, lines: list[LogLine]) -> TensorRTError:
    memory = out_of_memory(lines)
    if memory is not None:
        message = memory_ways_out(*memory, str(flavor), settings.batches, settings.workspace_mib)
        return PlanMemoryError(message, tuple(lines))
    errors = [line.text for line in lines if line.is_error]
    shown = "\n  ".join(errors[-4:]) or "TensorRT logged no error"
    return PlanBuildError(f"{flavor} built no plan from {onnx_path.name}:\n  {shown}", tuple(lines))
