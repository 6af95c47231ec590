"""A view of a model repository in which the Python steps have other instance counts or parameters than on disk.

With it they can depend on the machine, and the repository can be read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from repository.store import CONFIG_NAME, read_config, write_config


def make_view(
    repository: Path,
    target: Path,
    instances: Mapping[str, int],
    parameters: Mapping[str, Mapping[str, str]] | None = None,
    changes: Mapping[str, Callable[[Any], None]] | None = None,
) -> Path:
    """Make the view: links to all models, but for the configurations that differ.

    Args:
        repository: the model repository.
        target: a folder that does not exist yet.
        instances: model name to instance count, of models that no promotion changes.
        parameters: model name to the parameters of its configuration that differ, likewise.
        changes: model name to what else changes its configuration, likewise.

    Returns:
        ``target``.

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    repository, parameters, changes = repository.resolve(), parameters or {}, changes or {}
    target.mkdir(mode=0o700)
    for model in sorted(entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        if model.name not in {*instances, *parameters, *changes}:
            (target / model.name).symlink_to(model)
            continue
        view = target / model.name
        view.mkdir()
        for entry in model.iterdir():
            if entry.name not in (CONFIG_NAME, "configs"):
                (view / entry.name).symlink_to(entry)
        for path in (model / CONFIG_NAME, *sorted(model.glob("configs/*.pbtxt"))):
            config = read_config(path)
            for group in config.instance_group:
                group.count = instances.get(model.name, group.count)
            for name, value in parameters.get(model.name, {}).items():
                config.parameters[name].string_value = value
            if model.name in changes:
                changes[model.name](config)
            viewed = view / path.relative_to(model)
            viewed.parent.mkdir(exist_ok=True)
            write_config(viewed, config)
    return target
