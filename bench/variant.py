"""A copy of a model repository whose configurations differ: instance counts, kinds, promoted versions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from pipeline import contract
from repository.store import CONFIG_NAMES, ModelRepository, read_config, write_config

KINDS = {"cpu": model_config_pb2.ModelInstanceGroup.KIND_CPU, "gpu": model_config_pb2.ModelInstanceGroup.KIND_GPU}


@dataclass(frozen=True)
class Variant:
    """What differs from the repository that is copied.

    Attributes:
        preprocess_instances: processes that decode images; None leaves the number.
        postprocess_instances: processes that make masks; None leaves the number.
        network_instances: instances of the network; None leaves the number.
        network_kind: ``cpu`` or ``gpu``: where the network's instances are said to be; None leaves it.
        parameters: parameters of the network's configuration.
    """

    preprocess_instances: int | None = None
    postprocess_instances: int | None = None
    network_instances: int | None = None
    network_kind: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


def copy_repository(source: Path, target: Path, profile: str, variant: Variant) -> Path:
    """Copy a repository and change the copy.

    Under the profile cuda the versions that are served under cpu are promoted in the copy, for both load
    ``model.onnx``.

    Args:
        source: the repository.
        target: a folder that does not exist yet.
        profile: whose configuration of the network is changed.
        variant: what to change.

    Returns:
        ``target``.

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".lock", ".building-*"))
    counts = {
        contract.PREPROCESS_MODEL: variant.preprocess_instances,
        contract.POSTPROCESS_MODEL: variant.postprocess_instances,
    }
    for model, count in counts.items():
        if count is not None:
            _set_instances(target / model / "config.pbtxt", count, None)
    repository = ModelRepository(target)
    for precision in contract.PRECISIONS:
        path = target / contract.network_model(precision) / CONFIG_NAMES[profile]
        _set_instances(path, variant.network_instances, variant.network_kind)
        config = read_config(path)
        for name, value in variant.parameters.items():
            config.parameters[name].string_value = value
        if profile == "cuda":
            config.version_policy.specific.versions[:] = repository.promoted(precision, "cpu")
        write_config(path, config)
    return target


def _set_instances(path: Path, count: int | None, kind: str | None) -> None:
    config = read_config(path)
    for group in config.instance_group:
        if count is not None:
            group.count = count
        if kind is not None:
            group.kind = KINDS[kind]
    write_config(path, config)
