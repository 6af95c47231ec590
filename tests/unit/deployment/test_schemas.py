"""Every file of ``deploy/`` against the schemas of its API version."""

import pytest
import yaml

from tests.unit.deployment.rendered import DEPLOY, OVERLAYS, render, the
from tests.unit.deployment.schemas import faults, validators

KUBERNETES = "kubernetes/overlays/gpu"
KSERVE = "kserve/overlays/gpu"


def test_there_are_overlays_for_both_engines_and_machines():
    assert OVERLAYS == [
        "kserve/overlays/cpu",
        "kserve/overlays/gpu",
        "kubernetes/overlays/cpu",
        "kubernetes/overlays/gpu",
    ]


def test_every_resource_is_valid(resources):
    assert {each["kind"] for each in resources} >= {"PodDisruptionBudget", "NetworkPolicy", "PrometheusRule"}
    assert {f"{each['kind']}: {fault}" for each in resources for fault in faults(each)} == set()


def test_every_resource_but_the_namespace_is_in_the_namespace(resources):
    for each in resources:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "segmentation"


def test_every_file_belongs_to_an_overlay():
    reached = set()
    waiting = [DEPLOY / overlay for overlay in OVERLAYS]
    while waiting:
        path = waiting.pop().resolve()
        path = path / "kustomization.yaml" if path.is_dir() else path
        if path in reached:
            continue
        reached.add(path)
        if path.name == "kustomization.yaml":
            kustomization = yaml.safe_load(path.read_text())
            named = [*kustomization.get("resources", []), *kustomization.get("components", [])]
            named += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
            waiting += [path.parent / name for name in named]
    assert reached == set(DEPLOY.rglob("*.yaml"))


def container(resource):
    return resource["spec"]["template"]["spec"]["containers"][0]


# One wrong field for each source of schemas.
WRONG = [
    (KUBERNETES, "Deployment", lambda one: container(one).update(readinesProbe={}), "readinesProbe"),
    (KUBERNETES, "Deployment", lambda one: container(one)["ports"][0].update(containerPort="http"), "containerPort"),
    (KUBERNETES, "ServiceMonitor", lambda one: one["spec"]["endpoints"][0].update(ports="metrics"), "ports"),
    (KUBERNETES, "ScaledObject", lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=0.1), "threshold"),
    (KSERVE, "ServingRuntime", lambda one: one["spec"].pop("containers"), "containers"),
    (KSERVE, "InferenceService", lambda one: one["spec"]["predictor"]["model"].update(storageURI="s3:"), "storageURI"),
]


@pytest.mark.parametrize(("overlay", "kind", "change", "expected"), WRONG)
def test_every_schema_rejects_a_wrong_field(overlay, kind, change, expected):
    resource = the(render(overlay), kind)
    change(resource)
    found = faults(resource)
    assert any(expected in fault for fault in found), found
    sources = {source for source, _ in validators(resource["apiVersion"], kind)}
    assert {fault.split(":")[0] for fault in found} == sources


def test_kinds_without_a_schema_do_not_pass():
    for api_version, kind in (("apps/v1", "Deploymant"), ("keda.sh/v1", "ScaledObject"), ("example.com/v1", "Thing")):
        with pytest.raises(LookupError):
            faults({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}})
