"""All settings of a build with their defaults: one YAML file, overridable on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from base.paths import address_problem
from builder.errors import BuilderError
from builder.families import FAMILIES
from builder.first_run import Limits
from pipeline import contract
from repository.profiles import BUILT_PROFILES, PROFILES

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class SettingsError(BuilderError):
    """A setting is unknown, of the wrong type or out of range."""


def unbuilt_profile(name: str) -> str | None:
    """Why the builder does not build for a profile, and what to do; None if it does."""
    if name in BUILT_PROFILES:
        return None
    allowed = ", ".join(BUILT_PROFILES)
    if name not in PROFILES:
        return f"{name!r} is not a profile that is built for; allowed: {allowed}"
    build, serve = PROFILES[name].build_profile, f"python -m builder promote MODEL/VERSION --profile {name}"
    return f"the profile {name} serves versions of another one: build with --profile {build}, then `{serve}`"


def _is_path(value: object) -> object:
    """Refuse an address before it becomes a path, and loses a slash."""
    problem = address_problem(value) if isinstance(value, str | Path) else None
    if problem is not None:
        raise ValueError(problem)
    return value


LocalPath = Annotated[Path, BeforeValidator(_is_path)]
"""A path of this machine; ``s3://…`` and the like are refused."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inspection(_Section):
    """Bounds of the process that loads and runs the export for the first time.

    Attributes:
        time_s: most seconds that it may take.
        memory_mib: most address space that it may take, in MiB.
    """

    time_s: float = Field(default=Limits.time_s, gt=0, le=86400)
    memory_mib: int = Field(default=Limits.memory_mib, ge=1024)

    @property
    def limits(self) -> Limits:
        """The same for :func:`builder.export.load_export`."""
        return Limits(self.time_s, self.memory_mib)


class Calibration(_Section):
    """Images that set the ranges of int8.

    Attributes:
        images: files and folders; empty takes generated scenes for the reference model.
        scenes: how many scenes are generated for the reference model.
        method: ModelOpt's method for the tensorrt profile. ``max`` takes the largest value; ``entropy`` clips outliers,
            which costs the reference model's first convolution dearly. (The cpu profile always takes minimum and
            maximum.)
    """

    images: tuple[LocalPath, ...] = ()
    scenes: int = Field(default=128, ge=1)
    method: Literal["max", "entropy"] = "max"


class Verification(_Section):
    """Images that every precision is compared with fp32 on; never those of the calibration.

    Attributes:
        images: files and folders; empty holds back a part of the calibration images, or takes generated scenes for the
            reference model.
        annotations: COCO instances file of these images, for mask mAP.
        scenes: how many scenes are generated for the reference model.
        hold_back: share of the calibration images that is held back if no others are given.
        confidence: least score of a detection that counts.
        iou: suppression threshold.
    """

    images: tuple[LocalPath, ...] = ()
    annotations: LocalPath | None = None
    scenes: int = Field(default=128, ge=1)
    hold_back: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    confidence: Share = 0.25
    iou: Share = 0.45


class Gate(_Section):
    """What a precision must reach against the fp32 reference.

    Attributes:
        f1: least F1 of its detections, matched at box IoU 0.5.
        mask_iou: least mean mask IoU of the matches.
        class_f1: least F1 of every class; 0.1 less than ``f1`` where it is left out.
        class_mask_iou: least mean mask IoU of every class; 0.05 less than ``mask_iou`` where it is left out.
        class_instances: instances from which a class is gated by these two. A class with fewer must not be lost
            altogether if they are 3, or 5 % of all.
    """

    f1: Share
    mask_iou: Share
    class_f1: Share = 0.0
    class_mask_iou: Share = 0.0
    class_instances: int = Field(default=10, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _derive_classes(cls, values: Any) -> Any:
        # Few instances vary more: 2 of 10 lost are an F1 of 0.89.
        if isinstance(values, dict):
            values = dict(values)
            for name, less in (("f1", 0.1), ("mask_iou", 0.05)):
                whole = values.get(name)
                if isinstance(whole, (int, float)) and values.get(f"class_{name}") is None:
                    values[f"class_{name}"] = round(max(0.0, whole - less), 6)
        return values


class Gates(_Section):
    """One gate per reduced precision."""

    fp16: Gate = Gate(f1=0.99, mask_iou=0.98)
    int8: Gate = Gate(f1=0.97, mask_iou=0.95)

    def of(self, precision: str) -> Gate:
        """The gate of a precision; fp32 must equal the export but for prototypes in half precision."""
        found = {"fp16": self.fp16, "int8": self.int8}.get(precision)
        return found if found is not None else Gate(f1=0.999, mask_iou=0.995)


class PlanSettings(_Section):
    """How a TensorRT plan is built.

    Attributes:
        min_batch: smallest batch of the optimization profile.
        opt_batch: batch that the kernels are chosen for.
        max_batch: largest batch.
        workspace_mib: upper bound of the scratch memory that a layer may use while it runs, in MiB.
        version_compatible: the plan also runs on newer releases of the same TensorRT major. Slower; Triton then needs
            ``--backend-config=tensorrt,version-compatible=true``. Not for TensorRT-RTX.
        hardware_compatible: ``none``; ``ampere_plus`` for every GPU from compute capability 8.0; or
            ``same_compute_capability``. Not for TensorRT-RTX, whose plans are portable.
        optimization_level: 0 (fast build) to 5 (fast plan); None leaves TensorRT's default of 3.
        timing_cache: file that keeps kernel timings between builds; read if it exists, written after a build. Ignored
            by TensorRT-RTX.
        flavor: TensorRT to build with; None takes what is installed.
    """

    min_batch: int = Field(default=1, ge=1, le=256)
    opt_batch: int = Field(default=8, ge=1, le=256)
    max_batch: int = Field(default=16, ge=1, le=256)
    workspace_mib: int = Field(default=2048, ge=16)
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    timing_cache: LocalPath | None = None
    flavor: Literal["tensorrt-10", "tensorrt-11", "tensorrt-rtx"] | None = None

    @model_validator(mode="after")
    def _batches_rise(self) -> PlanSettings:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"min_batch {self.min_batch}, opt_batch {self.opt_batch}, max_batch {self.max_batch} must not fall"
            )
        return self

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, preferred and largest batch."""
        return self.min_batch, self.opt_batch, self.max_batch

    def facts(self) -> dict[str, Any]:
        """What of it determines the plan."""
        return self.model_dump(exclude={"timing_cache", "flavor"})


class Fallback(_Section):
    """What is tried when a build or a gate fails.

    Attributes:
        max_attempts: builds per network, each leaving the nodes that the last one failed on in higher precision.
        max_restorations: how many groups of layers are tried out of int8, the costliest first, when the gate fails.
        sensitivity_images: images that groups are ranked on.
    """

    max_attempts: int = Field(default=4, ge=1, le=32)
    max_restorations: int = Field(default=4, ge=0, le=64)
    sensitivity_images: int = Field(default=32, ge=1)


class BuildSettings(_Section):
    """A build.

    Attributes:
        profile: cpu or tensorrt, which the builder makes versions for.
        precisions: which ones; built and verified in the order fp32, fp16, int8.
        repository: the model repository to write to.
        onnx: the export; None takes the reference model.
        name: model name for tags; None takes the export's own.
        input_size: height and width, for an export of dynamic size.
        family: a key of :data:`builder.families.FAMILIES`; None recognizes it.
        class_names: where the export has none.
        top_k: anchors that leave the network per image.
        exclude: further ONNX nodes, or groups of them such as ``model.22.proto``, to keep out of int8.
        report: folder for the reports of precisions that do not pass their gates; a version holds its own.
        sign_key: private key that signs the versions; None leaves them unsigned.
        inspection: see :class:`Inspection`; the other sections likewise.
    """

    profile: str = "cpu"
    precisions: tuple[str, ...] = contract.PRECISIONS
    repository: LocalPath = Path("model_repository")
    onnx: LocalPath | None = None
    name: str | None = None
    input_size: tuple[int, int] | None = None
    family: str | None = None
    class_names: tuple[str, ...] = ()
    top_k: int = Field(default=contract.DEFAULT_TOP_K, ge=1, le=contract.MAX_TOP_K)
    exclude: tuple[str, ...] = ()
    report: Path = Path("out/report")
    sign_key: LocalPath | None = None
    inspection: Inspection = Inspection()
    calibration: Calibration = Calibration()
    verification: Verification = Verification()
    gates: Gates = Gates()
    plan: PlanSettings = PlanSettings()
    fallback: Fallback = Fallback()

    @field_validator("profile")
    @classmethod
    def _built_for(cls, profile: str) -> str:
        problem = unbuilt_profile(profile)
        if problem:
            raise ValueError(problem)
        return profile

    @field_validator("family")
    @classmethod
    def _family_exists(cls, family: str | None) -> str | None:
        if family is not None and family not in FAMILIES:
            raise ValueError(f"allowed: {', '.join(FAMILIES)}")
        return family

    @field_validator("precisions")
    @classmethod
    def _known(cls, precisions: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in precisions if name not in contract.PRECISIONS]
        if unknown or not precisions:
            raise ValueError(f"allowed: {', '.join(contract.PRECISIONS)}")
        return tuple(name for name in contract.PRECISIONS if name in precisions)

    def plain(self) -> dict[str, Any]:
        """The settings for JSON; of paths only the names, because folders mean nothing on another machine."""
        values, originals = (self.model_dump(mode=mode, exclude={"sign_key"}) for mode in ("json", "python"))
        plain: dict[str, Any] = _names_of_paths(values, originals)
        return plain


def load_settings(path: Path | None, overrides: dict[str, Any]) -> BuildSettings:
    """Read settings and lay those of the command line over them.

    Args:
        path: YAML file; None takes the defaults.
        overrides: entries by dotted name, such as ``plan.max_batch``; None values are ignored.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong; names each one.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets some of them through
            raise SettingsError(f"{path}: not YAML ({error})") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise SettingsError(
                f"{path}: expected entries such as `profile: tensorrt`, found a {type(loaded).__name__}"
            )
        values = loaded or {}
    for name, value in overrides.items():
        if value is not None:
            *sections, entry = name.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
                if not isinstance(place, dict):
                    raise SettingsError(f"{path}: {section} is {place!r}; expected entries below it")
            place[entry] = value
    try:
        return BuildSettings.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (found {fault['input']!r})" for fault in error.errors()
        ]
        where = f"{path}: " if path is not None else ""
        raise SettingsError(f"{where}{'; '.join(faults)}. builder/builder.yaml documents every entry") from error


def _names_of_paths(values: Any, originals: Any) -> Any:
    if isinstance(originals, dict):
        return {key: _names_of_paths(values[key], original) for key, original in originals.items()}
    if isinstance(originals, (list, tuple)):
        return [_names_of_paths(value, original) for value, original in zip(values, originals, strict=True)]
    return originals.name if isinstance(originals, Path) else values
