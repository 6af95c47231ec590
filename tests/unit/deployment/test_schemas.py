"""Every file of ``deploy/`` against the schemas of its API version."""

import yaml

from tests.unit.deployment.rendered import DEPLOY, OVERLAYS
from tests.unit.deployment.schemas import faults


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
