"""Writes a verified network as a version: build key, manifest, report, files, and whether it is served at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import onnx

from base.progress import Steps
from builder.advice import gate_message, ways_on
from builder.artifact import Profile
from builder.errors import BuilderError, GateError
from builder.export import Export
from builder.onnx_tools import first_line, quiet_session
from builder.report import REPORT_NAME, Example, choose_examples, write_report
from builder.settings import BuildSettings
from builder.source_check import Differences
from builder.surgery import tensor_sizes
from builder.verifier import Verified, Verifier
from pipeline import contract
from repository import manifest as manifests
from repository.integrity import version_faults
from repository.manifest import FileEntry, Manifest
from repository.networks import mixture, mixture_remedy
from repository.shim import SHIM, SHIM_NAME
from repository.signatures import SigningKey
from repository.store import ModelRepository

BUILD_REVISION: Final = 9
"""Raised whenever the builder makes something else out of the same inputs; part of every build key."""

_MODEL_FILE: Final = "model.onnx"


@dataclass(frozen=True)
class Built:
    """One precision's outcome.

    Attributes:
        manifest: of the version.
        folder: where the version lies.
        existed: an equal build had been made before; nothing was written.
        promoted: the profile's configuration names the version.
        state: for people: served, or what has to be done to serve it.
    """

    manifest: Manifest
    folder: Path
    existed: bool
    promoted: bool
    state: str


class Publisher:
    """Writes the versions of one build.

    Attributes:
        finished: manifests of the precisions that are done, in order.
    """

    def __init__(
        self,
        settings: BuildSettings,
        export: Export,
        profile: Profile,
        verifier: Verifier,
        fp32_graph: Differences,
        steps: Steps,
    ) -> None:
        """Open the repository: make it if it is not there, and write this network's sizes into its configurations.

        Args:
            settings: the build's.
            export: what is built.
            profile: what makes the networks.
            verifier: what compared them.
            fp32_graph: how far the fp32 graph differs from the export.
            steps: where progress is shown.

        Raises:
            RepositoryError: the folder is something else, or holds a network of another shape, or the key is refused.
        """
        self.finished: list[Manifest] = []
        self._settings, self._export, self._profile = settings, export, profile
        self._verifier, self._fp32_graph, self._steps = verifier, fp32_graph, steps
        self._sizes = tensor_sizes(export, settings.top_k)
        # Now, not after hours of work.
        self._key = SigningKey.read(settings.sign_key, settings.repository) if settings.sign_key is not None else None
        self._repository = ModelRepository.open(settings.repository)
        with self._repository.locked():
            changed = self._repository.fit_network(
                self._sizes, export.class_names, export.layout.limits, stretch=export.stretch
            )
            for path in changed:
                steps.note(f"sizes and class names of this network written to {path}")
        for precision in settings.precisions:
            for stray in self._repository.strays(precision):
                steps.warn(stray)

    def existing(self, precision: str) -> Built | None:
        """The version of an earlier, equal build; None if there is none, or it lacks the signature of this build's key.

        Such a version is built again: whoever can write to the repository could have made it.
        """
        manifest = self._repository.find_build(precision, self._build_key(precision))
        if manifest is None or (self._key is not None and not self._signed(precision, manifest.version)):
            return None
        self._steps.note(f"{precision}: already built as version {manifest.version}, {manifest.tag}")
        folder = self._repository.model_folder(precision) / str(manifest.version)
        return self._done(manifest, folder, existed=True)

    def publish(self, precision: str, verified: Verified, durations_s: dict[str, float]) -> Built:
        """Write a version, unless its gate is not passed.

        Args:
            precision: fp32, fp16 or int8.
            verified: the network.
            durations_s: seconds of the steps that made it, by name.

        Raises:
            GateError: the gate is not passed; only a report is written.
        """
        if verified.failures:
            raise GateError(self._failure(precision, verified, durations_s))
        repository, artifact = self._repository, verified.artifact
        with repository.locked(), repository.staging(precision) as staged:
            onnx.save(artifact.model, staged / _MODEL_FILE)
            (staged / SHIM_NAME).write_text(SHIM, encoding="utf-8")
            for name, plan in artifact.plans.items():
                (staged / name).write_bytes(plan)
            _check_runs(staged / _MODEL_FILE)
            version = repository.next_version(precision)
            main = next(iter(artifact.plans), _MODEL_FILE)
            suffix = FileEntry.of(staged / main).sha256[:8]
            manifest = self._manifest(precision, verified, durations_s, version, suffix)
            self._report(staged / REPORT_NAME, manifest, verified)
            files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
            manifest = replace(manifest, files=files)
            (staged / manifests.MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
            if self._key is not None:
                self._key.sign(staged)
            served = {
                profile: repository.promoted(precision, profile)
                for profile in contract.PROFILES
                if repository.config_path(precision, profile).is_file()
            }
            folder = repository.publish(precision, staged, version)
            self._promote_first(precision, version, served)
            built = self._done(manifest, folder, existed=False)
        self._steps.note(f"{precision}: version {version}, {manifest.tag}")
        return built

    def _done(self, manifest: Manifest, folder: Path, *, existed: bool) -> Built:
        self.finished.append(manifest)
        repository, profile = self._repository, self._settings.profile
        precision, version = manifest.precision, manifest.version
        promoted = version in repository.promoted(precision, profile)
        unservable = repository.why_not_servable(precision, version, profile)
        mixed = None if promoted else mixture(repository, profile, planned={precision: version})
        state = "served" if promoted else "not served until promoted"
        if unservable is not None:
            state = f"not served under the profile {profile}: {unservable}"
        elif mixed is not None:
            what_to_do = mixture_remedy(repository, mixed, self._export.sha256)
            state += f" together with the other precisions of its export: {what_to_do}"
        return Built(manifest, folder, existed, promoted, state)

    def _promote_first(self, precision: str, version: int, served: Mapping[str, list[int]]) -> None:
        """Serve a version at once where it replaces nothing, and where all that is served is of its network.

        Args:
            precision: of the version.
            version: its number.
            served: per profile, the versions that were served before it was published.
        """
        for profile, before in served.items():
            if before or not self._repository.is_servable(precision, version, profile):
                continue
            named = version in self._repository.named_versions(precision, profile)  # as shipped, a first version is
            if mixture(self._repository, profile, planned={precision: version}) is not None:
                if named:
                    self._repository.withdraw(precision, profile)
            elif profile == self._settings.profile and not named:
                self._repository.promote(precision, profile, version)

    def _failure(self, precision: str, verified: Verified, durations_s: dict[str, float]) -> str:
        """Write the report of a precision that does not pass, and say what failed and what to do."""
        ways = ways_on(precision, verified, self._settings, [manifest.precision for manifest in self.finished])
        manifest = self._manifest(precision, verified, durations_s, 0, "not-written")
        report = self._settings.report / f"{self._export.name}-{precision}.html"
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            self._report(report, manifest, verified, ways)
        except OSError as error:
            self._steps.warn(f"the report is not written to {report} ({error.strerror}); choose a folder with --report")
            return gate_message(precision, verified, ways, None)
        return gate_message(precision, verified, ways, report)

    def _report(self, path: Path, manifest: Manifest, verified: Verified, ways: Sequence[str] = ()) -> None:
        reference = self._verifier.reference.found
        confidence = self._settings.verification.confidence
        paths = self._verifier.images.paths
        examples = [
            Example(paths[index], reference[index], verified.found[index])
            for index in choose_examples(reference, verified.found, confidence)
        ]
        write_report(path, manifest, self.finished, examples, verified.trades, confidence, ways)

    def _manifest(
        self, precision: str, verified: Verified, durations_s: dict[str, float], version: int, suffix: str
    ) -> Manifest:
        artifact = verified.artifact
        return Manifest(
            tag=f"{self._export.name}-{precision}-{artifact.runtime}-{suffix}",
            model=contract.network_model(precision),
            version=version,
            precision=precision,
            profile=self._settings.profile,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            build_key=self._build_key(precision),
            source=self._source(),
            toolchain={**_toolchain(), **artifact.toolchain},
            settings=self._settings.plain(),
            files={},
            calibration=artifact.calibration,
            excluded_nodes=artifact.excluded,
            layers=artifact.layers,
            plans=artifact.plan_facts,
            verification=self._verification(verified),
            attempts=artifact.attempts,
            durations_s=durations_s,
        )

    def _verification(self, verified: Verified) -> dict[str, Any]:
        settings, reference, images = self._verifier.thresholds, self._verifier.reference, self._verifier.images
        return {
            "passed": not verified.failures,
            "failures": list(verified.failures),
            "gate": verified.gate.model_dump(),
            "metrics": verified.agreement.as_dict(),
            "classes": [one.as_dict() for one in verified.agreement.classes],
            "warnings": list(reference.weaknesses),
            "measured": verified.measured,
            "engines": verified.engines,
            "reference": (
                f"{self._export.path.name}, {'its weights in float32' if self._export.is_half else 'unchanged'}, "
                "run by ONNX Runtime, decoded in float64 by other code"
            ),
            "differences": verified.differences.as_dict(),
            "fp32_graph": self._fp32_graph.as_dict(),
            "images_beyond_top_k": reference.cut_images,
            "images": len(images.paths),
            "images_sha256": images.sha256,
            "confidence": settings.confidence,
            "iou": settings.iou,
            "sensitivity": [cost.as_dict() for cost in verified.ranking],
            "trades": [trade.as_dict() for trade in verified.trades],
            "restored": list(verified.restored),
        }

    def _source(self) -> dict[str, Any]:
        export = self._export
        return {
            "name": export.name,
            "file": export.path.name,
            "sha256": export.sha256,
            "files": export.files,
            "opset": export.opset,
            "num_classes": export.num_classes,
            "input_size": list(export.input_size),
            "class_names": list(export.class_names),
            "tensor_sizes": self._sizes,
            "family": export.layout.family.key,
            "request_limits": export.layout.limits,
            "stretch": export.stretch,
            "half": export.is_half,
            **export.facts,
        }

    def _signed(self, precision: str, version: int) -> bool:
        mine = ModelRepository(self._repository.path, self._key.trusted if self._key is not None else None)
        return not version_faults(mine, precision, version)

    def _build_key(self, precision: str) -> str:
        """Hash over all that determines the result."""
        facts = {
            "revision": BUILD_REVISION,
            "profile": self._settings.profile,
            "precision": precision,
            "source": self._source(),
            "toolchain": _toolchain(),
            "verification": [self._verifier.images.sha256, self._settings.verification.model_dump(mode="json")],
            "gates": self._settings.gates.model_dump(),
            "fallback": self._settings.fallback.model_dump(),
            **self._profile.facts(precision),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _check_runs(path: Path) -> None:
    try:
        quiet_session(path.read_bytes())
    except Exception as error:  # ONNX Runtime has one exception type per status
        raise BuilderError(f"the built network does not load in ONNX Runtime: {first_line(error)}") from error


def _toolchain() -> dict[str, str]:
    return manifests.toolchain("numpy", "onnx", "onnxruntime", "opencv-python-headless", "triton-instance-segmentation")
