"""Every file of ``deploy/`` against the schemas of its API version."""

import pytest
import yaml

from tests.unit.deploy.rendered import DEPLOY, OVERLAYS, render, the
from tests.unit.deploy.schemas import faults, validators

KUBERNETES = "kubernetes/overlays/gpu"
KSERVE = "kserve/overlays/gpu"


def test_there_are_overlays_for_both_engines_and_machines():
    assert OVERLAYS == [
        "kserve/overlays/cpu",
        "kserve/overlays/gpu",
        "kubernetes/overlays/cpu",
        "kubernetes/overlays/gpu",
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid(overlay):
    resources = render(overlay)
    assert {each["kind"] for each in resources} >= {"PodDisruptionBudget", "NetworkPolicy", "PrometheusRule"}
    assert {f"{each['kind']}: {fault}" for each in resources for fault in faults(each)} == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_but_the_namespace_is_in_the_namespace(overlay):
    for each in render(overlay):
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


def broken(overlay, kind, change, name=None):
    resource = the(render(overlay), kind, name)
    change(resource)
    return faults(resource)


def container(resource):
    return resource["spec"]["template"]["spec"]["containers"][0]


# One wrong field for every schema: a name that nobody knows, a type, a value, something left out.
WRONG = [
    (KUBERNETES, "Deployment", lambda one: container(one).update(readinesProbe={}), "readinesProbe"),
    (KUBERNETES, "Deployment", lambda one: container(one)["ports"][0].update(containerPort="http"), "containerPort"),
    (KUBERNETES, "Deployment", lambda one: one["spec"].pop("selector"), "selector"),
    (KUBERNETES, "PodDisruptionBudget", lambda one: one["spec"].update(minUnavailable=1), "minUnavailable"),
    (KUBERNETES, "NetworkPolicy", lambda one: one["spec"]["egress"][1].update(port=443), "port"),
    (KUBERNETES, "ConfigMap", lambda one: one["data"].update(PREPROCESS_INSTANCES=4), "PREPROCESS_INSTANCES"),
    (KUBERNETES, "ServiceMonitor", lambda one: one["spec"]["endpoints"][0].update(ports="metrics"), "ports"),
    (KUBERNETES, "ServiceMonitor", lambda one: one["metadata"].update(label={}), "label"),
    (KUBERNETES, "PrometheusRule", lambda one: one["spec"]["groups"][0]["rules"][0].update(alerts="A"), "alerts"),
    (KUBERNETES, "ScaledObject", lambda one: one["spec"].update(minReplicas=2), "minReplicas"),
    (KUBERNETES, "ScaledObject", lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=0.1), "threshold"),
    (KSERVE, "ServingRuntime", lambda one: one["spec"]["containers"][0].update(arguments=[]), "arguments"),
    (KSERVE, "ServingRuntime", lambda one: one["spec"].pop("containers"), "containers"),
    (KSERVE, "InferenceService", lambda one: one["spec"]["predictor"]["model"].update(storageURI="s3:"), "storageURI"),
    (KSERVE, "InferenceService", lambda one: one["spec"]["predictor"].update(minReplicas="2"), "minReplicas"),
    (KSERVE, "PodMonitor", lambda one: one["spec"].update(endpoints=[]), "endpoints"),
]


@pytest.mark.parametrize(("overlay", "kind", "change", "told"), WRONG)
def test_a_wrong_field_is_found(overlay, kind, change, told):
    found = broken(overlay, kind, change)
    assert any(told in fault for fault in found), found
    # Whichever version the cluster has.
    assert {fault.split(":")[0] for fault in found} == {source for source, _ in validators_of(overlay, kind)}


def validators_of(overlay, kind):
    return validators(the(render(overlay), kind)["apiVersion"], kind)


def test_kinds_without_a_schema_do_not_pass():
    for api_version, kind in (("apps/v1", "Deploymant"), ("keda.sh/v1", "ScaledObject"), ("example.com/v1", "Thing")):
        with pytest.raises(LookupError):
            faults({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}})
