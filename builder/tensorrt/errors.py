"""Errors of the TensorRT side. Every message names the fault and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import BuilderError


@dataclass(frozen=True)
class LogLine:
    """One line of TensorRT's builder log.

    Attributes:
        severity: ``INTERNAL_ERROR``, ``ERROR``, ``WARNING``, ``INFO`` or ``VERBOSE``.
        text: the message, without a time stamp.
    """

    severity: str
    text: str

    @property
    def is_error(self) -> bool:
        """Whether TensorRT logged it as an error."""
        return self.severity in ("INTERNAL_ERROR", "ERROR")


class TensorRTError(BuilderError):
    """A TensorRT plan cannot be built as asked."""


class ToolchainError(TensorRTError):
    """ModelOpt, or a package that it needs, is missing or cannot be used here."""


class ConversionError(TensorRTError):
    """ModelOpt did not turn the network into fp16 or int8."""


class OnnxParseError(TensorRTError):
    """TensorRT's ONNX parser refused the network.

    Attributes:
        problems: one text per parser error, naming node, operator and reason;
            ``failures.parse_problems`` finds the nodes in them.
        lines: the log up to there.
    """

    def __init__(self, message: str, problems: tuple[str, ...], lines: tuple[LogLine, ...]) -> None:
        super().__init__(message)
        self.problems = problems
        self.lines = lines


class _LoggedError(TensorRTError):
    """A build failed after parsing.

    Attributes:
        lines: the whole log; ``failures.parse_build_log`` finds the nodes in it.
    """

    def __init__(self, message: str, lines: tuple[LogLine, ...]) -> None:
        super().__init__(message)
        self.lines = lines


class PlanBuildError(_LoggedError):
    """TensorRT parsed the network and then built no plan from it."""


class PlanMemoryError(_LoggedError):
    """TensorRT ran out of memory while it built a plan; other quantizers would not change that."""
