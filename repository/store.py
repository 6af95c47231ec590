"""The model repository on disk: its configurations, and versions that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from base.paths import address_problem
from pipeline import contract
from repository.errors import RepositoryError
from repository.manifest import MANIFEST_NAME, Manifest
from repository.networks import refuse_other_classes
from repository.profiles import PROFILES

SHIPPED_REPOSITORY: Final = Path(__file__).resolve().parent.parent / "model_repository"
PROMOTIONS_NAME: Final = ".promotions.jsonl"
"""Log of what was promoted, in each model's folder; Triton looks at numbered folders alone."""

_STAGING_PREFIX: Final = ".building-"
_LOCK_NAME: Final = ".lock"
_COPYING_NAME: Final = ".copying"
CONFIG_NAMES: Final = {name: profile.config_name for name, profile in PROFILES.items()}
"""Where the configuration of a ``network_*`` model lies, per profile."""

_MAKE_ROOM: Final = "make room on that disk, then repeat the command"
_BE_ALLOWED: Final = "make the repository writable for this user, then repeat the command"
_DISK_REMEDIES: Final = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _BE_ALLOWED,
    errno.EACCES: _BE_ALLOWED,
    errno.EPERM: _BE_ALLOWED,
}


class ModelRepository:
    """A Triton model repository of this project.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> ModelRepository:
        """Open a repository; a folder that is missing or empty gets the shipped models without versions.

        Raises:
            RepositoryError: the folder holds something else.
        """
        _refuse_address(path)
        repository = cls(path)
        if repository._is_whole():
            return repository
        if path.exists() and not (path / _COPYING_NAME).exists() and _has_foreign_entries(path):
            raise RepositoryError(
                f"{path} is not a model repository of this project (no {contract.PREPROCESS_MODEL}/config.pbtxt); "
                "give a new or empty folder with --repository"
            )
        if not SHIPPED_REPOSITORY.is_dir():
            raise RepositoryError(f"{SHIPPED_REPOSITORY}: missing; run from a checkout of the project")
        with _disk_faults_told(path):
            path.mkdir(parents=True, exist_ok=True)
        with repository.locked():
            if not repository._is_whole():  # another builder may have made it meanwhile
                # Whoever finds this mark knows that the copy was cut short, and makes it again.
                (path / _COPYING_NAME).touch()
                shutil.copytree(SHIPPED_REPOSITORY, path, ignore=_versions_and_caches, dirs_exist_ok=True)
                (path / _COPYING_NAME).unlink()
        return repository

    @classmethod
    def existing(cls, path: Path) -> ModelRepository:
        """Open a repository that must be there; nothing is written.

        Raises:
            RepositoryError: there is none.
        """
        _refuse_address(path)
        repository = cls(path)
        if not repository._is_whole():
            raise RepositoryError(
                f"{path} is no model repository of this project; give one with --repository, or make one with "
                f"`python -m builder build --repository {path}`"
            )
        return repository

    def _is_whole(self) -> bool:
        shipped = (self.path / contract.PREPROCESS_MODEL / "config.pbtxt").is_file()
        return shipped and not (self.path / _COPYING_NAME).exists()

    def model_folder(self, precision: str) -> Path:
        """Folder of ``network_<precision>``."""
        return self.path / contract.network_model(precision)

    def versions(self, precision: str) -> list[int]:
        """Numbers of the versions on disk, rising."""
        return version_numbers(self.model_folder(precision))

    def manifests(self, precision: str) -> list[Manifest]:
        """Manifests of the versions on disk, by rising number; versions without a readable one are left out."""
        found = []
        for version in self.versions(precision):
            with contextlib.suppress(RepositoryError):
                found.append(Manifest.read(self.model_folder(precision) / str(version)))
        return found

    def find_build(self, precision: str, build_key: str) -> Manifest | None:
        """The version that an earlier, equal build wrote, if its files are still whole in number and size."""
        for manifest in reversed(self.manifests(precision)):
            folder = self.model_folder(precision) / str(manifest.version)
            whole = all(
                (folder / name).is_file() and (folder / name).stat().st_size == entry.size_bytes
                for name, entry in manifest.files.items()
            )
            if manifest.build_key == build_key and whole:
                return manifest
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository for writing; a second builder waits.

        Raises:
            RepositoryError: it cannot be written to, or there is no room; what is written appears whole or not at all.
        """
        with _disk_faults_told(self.path), (self.path / _LOCK_NAME).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def is_locked(self) -> bool:
        """Whether somebody writes to the repository now."""
        try:
            with (self.path / _LOCK_NAME).open() as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def leftovers(self, precision: str) -> list[Path]:
        """Staging folders and half-written configurations that concern a precision.

        While the repository is not locked, they are those of builders that were killed.
        """
        folder = self.model_folder(precision)
        shared = [self.path / name for name in contract.SHARED_MODELS]
        half_written = [file for place in (folder, folder / "configs", *shared) for file in place.glob(".*.pbtxt-*")]
        half_written += [file for name in (".plan-*", f".{MANIFEST_NAME}-*") for file in folder.glob(f"[0-9]*/{name}")]
        return sorted([*folder.glob(f"{_STAGING_PREFIX}*"), *half_written])

    @contextlib.contextmanager
    def staging(self, precision: str) -> Iterator[Path]:
        """A temporary folder on the repository's file system; gone afterwards if it was not published.

        To be used while the repository is :meth:`locked`: whatever else is found there was left by a builder that was
        killed, and is removed.
        """
        parent = self.model_folder(precision)
        self._sweep(precision)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, precision: str, staged: Path, version: int) -> Path:
        """Turn a staged folder into a version, in one step. Its files become read-only.

        Raises:
            RepositoryError: the version exists.
        """
        target = self.model_folder(precision) / str(version)
        if target.exists():
            raise RepositoryError(f"{target} exists; versions are never changed")
        for file in staged.iterdir():
            file.chmod(0o444)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        staged.chmod(0o755)
        staged.rename(target)
        return target

    def remove(self, precision: str, version: int) -> None:
        """Remove a version: out of sight in one step, then deleted. To be used while the repository is locked."""
        self._sweep(precision)
        folder = self.model_folder(precision) / str(version)
        hidden = folder.with_name(f"{_STAGING_PREFIX}removed-{version}")
        folder.rename(hidden)
        shutil.rmtree(hidden)

    def _sweep(self, precision: str) -> None:
        for leftover in self.leftovers(precision):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def promoted(self, precision: str, profile: str) -> list[int]:
        """Versions that the profile's configuration names and that can be served under it."""
        named = self.named_versions(precision, profile)
        return [version for version in named if self.is_servable(precision, version, profile)]

    def named_versions(self, precision: str, profile: str) -> list[int]:
        """Versions that the profile's configuration names, there or not.

        Raises:
            RepositoryError: the configuration is missing or broken.
        """
        return list(read_config(self.config_path(precision, profile)).version_policy.specific.versions)

    def profiles_of(self, precision: str, version: int) -> list[str]:
        """Profiles under which the configuration names a version that can be served."""
        return [profile for profile in contract.PROFILES if version in self.promoted(precision, profile)]

    def is_servable(self, precision: str, version: int, profile: str) -> bool:
        """Whether a version holds what the profile's backend loads."""
        folder = self.model_folder(precision) / str(version)
        if PROFILES[profile].loads_plans:
            return any(folder.glob("*.plan"))
        return (folder / "model.onnx").is_file() and (folder / "model.py").is_file()

    def why_not_servable(self, precision: str, version: int, profile: str) -> str | None:
        """Why a version cannot be served under a profile, and what to do; None if it can."""
        if self.is_servable(precision, version, profile):
            return None
        folder = self.model_folder(precision) / str(version)
        if not folder.is_dir():
            return "there is no such version; `python -m builder list` shows those that are there"
        if not PROFILES[profile].loads_plans:
            lacking = [name for name in ("model.onnx", "model.py") if not (folder / name).is_file()]
            return f"{folder} lacks {' and '.join(lacking)}; `python -m builder verify` says more"
        onnx_profiles = "|".join(name for name, one in PROFILES.items() if not one.loads_plans)
        ref = f"{contract.network_model(precision)}/{version}"
        elsewhere = f"its model.onnx is served by `python -m builder promote {ref} --profile {onnx_profiles}`"
        if any(folder.glob("*.rtxplan")):
            return (
                "its plan is one of TensorRT-RTX, which Triton's TensorRT backend does not load. Build with the "
                f"package tensorrt on the machine that is to serve; {elsewhere}"
            )
        return f"it holds no TensorRT plan. Build with --profile {profile}; {elsewhere}"

    def check_servable(self, precision: str, version: int, profile: str) -> None:
        """Refuse a version that cannot be served under a profile.

        Raises:
            RepositoryError: it cannot; says why, and what to do.
        """
        reason = self.why_not_servable(precision, version, profile)
        if reason is not None:
            model = contract.network_model(precision)
            raise RepositoryError(f"{model}/{version} cannot be served under the profile {profile}: {reason}")

    def promote(self, precision: str, profile: str, version: int) -> None:
        """Make the profile's configuration name this version alone.

        Raises:
            RepositoryError: the version cannot be served under the profile.
        """
        self.check_servable(precision, version, profile)
        path = self.config_path(precision, profile)
        config = read_config(path)
        if list(config.version_policy.specific.versions) != [version]:
            config.version_policy.specific.versions[:] = [version]
            write_config(path, config)

    def withdraw(self, precision: str, profile: str) -> None:
        """Make the profile's configuration name no version."""
        path = self.config_path(precision, profile)
        config = read_config(path)
        config.version_policy.specific.versions[:] = []
        write_config(path, config)

    def config_path(self, precision: str, profile: str) -> Path:
        """The configuration of ``network_<precision>`` under a profile."""
        return self.model_folder(precision) / CONFIG_NAMES[profile]

    def next_version(self, precision: str) -> int:
        """The number that follows the highest on disk."""
        return max(self.versions(precision), default=0) + 1

    def fit_network(self, sizes: Mapping[str, list[int]], class_names: Sequence[str]) -> list[Path]:
        """Write the network's sizes into the configurations that differ from them.

        Args:
            sizes: tensor name to dimensions, without batch, of the tensors that depend on the network.
            class_names: of the network.

        Returns:
            The files that were rewritten.

        Raises:
            RepositoryError: other versions in the repository have other sizes or classes; one repository serves one
                network, because all precisions share the other steps and the classes' numbers.
        """
        self._refuse_other_networks(sizes, class_names)
        changed = {}
        for path in self._network_configs():
            config = read_config(path)
            if _fit(config, sizes):
                changed[path] = config
        for path, config in changed.items():
            write_config(path, config)
        return list(changed)

    def _network_configs(self) -> list[Path]:
        paths = [self.path / name / "config.pbtxt" for name in contract.SHARED_MODELS]
        for precision in contract.PRECISIONS:
            folder = self.model_folder(precision)
            paths += [folder / "config.pbtxt", *sorted(folder.glob("configs/*.pbtxt"))]
        return paths

    def _refuse_other_networks(self, sizes: Mapping[str, list[int]], class_names: Sequence[str]) -> None:
        for precision in contract.PRECISIONS:
            for manifest in self.manifests(precision):
                refuse_other_classes(self.path, manifest, class_names)
                if manifest.source["tensor_sizes"] != sizes:
                    raise RepositoryError(
                        f"{self.path} holds {manifest.tag} with tensors {manifest.source['tensor_sizes']}; this export "
                        f"has {sizes}. One repository serves one network shape: build into another one with "
                        "--repository FOLDER"
                    )


def version_numbers(model_folder: Path) -> list[int]:
    """Numbers of the version folders of a model, rising."""
    if not model_folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in model_folder.iterdir() if re.fullmatch(r"[1-9]\d*", entry.name))


def read_config(path: Path) -> Any:
    """Parse a ``config.pbtxt`` into a ``ModelConfig``.

    Raises:
        RepositoryError: missing or not a model configuration.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}; restore it from the shipped model repository") from error
    except text_format.ParseError as error:
        raise RepositoryError(f"{path}: not a model configuration ({error})") from error


def write_config(path: Path, config: Any) -> None:
    """Write a ``ModelConfig`` as text, atomically."""
    write_text(path, text_format.MessageToString(config))


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, then rename it into it."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _disk_faults_told(path: Path) -> Iterator[None]:
    """Turn what only a person can fix into an error that says so; other errors of the system are left as they are."""
    try:
        yield
    except OSError as error:
        remedy = _DISK_REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise RepositoryError(f"{error.filename or path}: {error.strerror}; {remedy}") from error


def _refuse_address(path: Path) -> None:
    problem = address_problem(path)
    if problem is not None:
        raise RepositoryError(problem)


def _fit(config: Any, sizes: Mapping[str, list[int]]) -> bool:
    changed = False
    for tensor in [*config.input, *config.output]:
        wanted = sizes.get(tensor.name)
        if wanted is not None and list(tensor.dims) != wanted:
            tensor.dims[:] = wanted
            changed = True
    return changed


def _has_foreign_entries(folder: Path) -> bool:
    return any(entry.name != _LOCK_NAME for entry in folder.iterdir())


def _versions_and_caches(folder: str, names: list[str]) -> set[str]:
    """What of the shipped repository is not copied: built versions, caches, hidden leftovers."""
    segmentation = Path(folder).name.startswith("network_")
    return {
        name
        for name in names
        if name == "__pycache__"
        or name.startswith((_STAGING_PREFIX, _LOCK_NAME))
        or name in (PROMOTIONS_NAME, _COPYING_NAME)
        or (segmentation and (Path(folder) / name / MANIFEST_NAME).is_file())
    }
