"""Errors of the builder. Every message names the fault and what to do about it."""

from base.errors import OperatorError


class BuilderError(OperatorError):
    """The build cannot continue; the repository is unchanged."""


class ExportError(BuilderError):
    """The ONNX file is not a segmentation export that can be served."""


class CalibrationError(BuilderError):
    """The calibration images are missing or unusable."""


class GateError(BuilderError):
    """A precision does not come close enough to the fp32 reference."""
