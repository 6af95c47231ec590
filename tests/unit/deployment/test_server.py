"""The server's pod in ``deploy/``: what it runs, how it starts and ends, what it may and what it sees."""

import json
import re

import pytest

from builder.__main__ import _parser as builder_parser
from repository.signatures import TRUSTED_KEYS_VARIABLE
from serving.__main__ import _parser
from tests.compose import resolved
from tests.dockerfiles import stages
from tests.unit.deployment.rendered import (
    OVERLAYS,
    ROOT,
    arguments,
    containers,
    environment,
    pod,
    render,
    server,
    the,
)

SERVING = {stage.name: stage for stage in stages(ROOT / "serving/Dockerfile") if stage.all("ENTRYPOINT")}
KUBERNETES = [overlay for overlay in OVERLAYS if overlay.startswith("kubernetes/")]
STUBS_S = 10  # what serving/server.py gives the models' processes behind the exit timeout
ANSWER_READY = "/v2/models/segment_int8/ready"


@pytest.fixture
def profile(request):
    return {"gpu": "tensorrt", "cpu": "cpu"}[request.node.callspec.params["resources"].rpartition("/")[2]]


@pytest.fixture
def options(resources):
    return _parser().parse_args(arguments(resources, server(resources)))


def mounts(container):
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def volumes(resources):
    return {volume["name"]: volume for volume in pod(resources)["spec"]["volumes"]}


def test_arguments_are_those_of_the_server(resources, options, profile):
    container = server(resources)
    assert "command" not in container  # the image's entry is `python -m serving`
    for stage in SERVING.values():
        assert json.loads(stage.all("ENTRYPOINT")[0]) == ["python", "-m", "serving"]
    assert options.profile == profile
    assert options.host == "0.0.0.0"  # noqa: S104 - inside of the pod
    repository = mounts(container)[str(options.repository)]
    assert repository["readOnly"] is True
    assert str(options.admin_secret_file.parent) in mounts(container)
    limits = container["resources"]["limits"]
    cores = int(container["resources"]["requests"]["cpu"])
    assert options.preprocess_instances + options.postprocess_instances <= cores
    assert ("nvidia.com/gpu" in limits) == (profile == "tensorrt")


def test_images_are_those_that_are_built(resources, profile):
    images = {each["image"] for each in containers(resources) if "segmentation" in each["image"]}
    [image] = images
    built = resolved(stack={"tensorrt": "gpu", "cpu": "cpu"}[profile])["services"]["triton"]["image"]
    assert image.rpartition("/")[2] == built
    for each in containers(resources):
        assert not each["image"].endswith(":latest")
        assert ":" in each["image"]


def test_ports_are_the_servers(resources, options):
    ports = {port["name"].rstrip("1"): port["containerPort"] for port in server(resources)["ports"]}
    assert ports == {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    for stage in SERVING.values():
        assert {int(port) for port in stage.all("EXPOSE")[0].split()} == set(ports.values())


@pytest.mark.parametrize("overlay", KUBERNETES)
def test_services_lead_to_the_servers_ports(overlay):
    resources = render(overlay)
    ports = {port["name"]: port["containerPort"] for port in server(resources)["ports"]}
    for name, expected in (("segmentation-triton", ports), ("segmentation-triton-replicas", {"grpc": ports["grpc"]})):
        service = the(resources, "Service", name)
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == expected
    assert the(resources, "Service", "segmentation-triton-replicas")["spec"]["clusterIP"] == "None"


def test_everything_that_selects_the_pods_does(resources):
    labels = pod(resources)["metadata"]["labels"]
    selectors = [
        the(resources, "PodDisruptionBudget")["spec"]["selector"],
        the(resources, "NetworkPolicy")["spec"]["podSelector"],
        *(each["labelSelector"] for each in pod(resources)["spec"]["topologySpreadConstraints"]),
        *({"matchLabels": each["spec"]["selector"]} for each in resources if each["kind"] == "Service"),
        *(each["spec"]["selector"] for each in resources if each["kind"] in ("Deployment", "PodMonitor")),
    ]
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels.items()


def test_a_replica_is_killed_later_than_it_ends_by_itself(resources, options):
    sleeps = server(resources)["lifecycle"]["preStop"]
    pause_s = sleeps["sleep"]["seconds"] if "sleep" in sleeps else float(sleeps["exec"]["command"][1])
    assert pause_s >= 5
    grace_s = pod(resources)["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= pause_s + options.exit_timeout_s + STUBS_S + 10


def test_probes_ask_what_they_are_for(resources, options):
    container = server(resources)
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name, path in (
        ("startupProbe", ANSWER_READY),
        ("readinessProbe", ANSWER_READY),
        ("livenessProbe", "/v2/health/live"),
    ):
        asked = container[name]["httpGet"]
        assert asked["path"] == path
        assert named.get(asked["port"], asked["port"]) == options.http_port
        assert container[name]["timeoutSeconds"] < container[name]["periodSeconds"]
    assert lasts_s(container["startupProbe"]) > options.ready_timeout_s
    # A server that died or hangs is replaced from within first: 30 s to find it, 30 s of pause, and a start.
    assert lasts_s(container["livenessProbe"]) >= 120
    assert lasts_s(container["readinessProbe"]) <= 15


def lasts_s(probe):
    return probe["periodSeconds"] * probe["failureThreshold"]


def test_pods_are_restricted(resources):
    spec = pod(resources)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert the(resources, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == the(resources, "ServiceAccount")["metadata"]["name"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in containers(resources):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        for amount in ("memory", "ephemeral-storage"):
            assert container["resources"]["limits"][amount] == container["resources"]["requests"][amount]
    for volume in spec["volumes"]:
        assert "hostPath" not in volume
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})


def test_what_is_written_has_room_and_counts(resources):
    container = server(resources)
    held = volumes(resources)
    memory = {
        mount["mountPath"]: gibibytes(held[mount["name"]]["emptyDir"]["sizeLimit"])
        for mount in container["volumeMounts"]
        if held.get(mount["name"], {}).get("emptyDir", {}).get("medium") == "Memory"
    }
    assert set(memory) == {"/tmp", "/dev/shm"}  # noqa: S108 - of the pod
    assert min(memory.values()) >= 0.25
    assert gibibytes(container["resources"]["limits"]["memory"]) > 2 * sum(memory.values())
    for stage in SERVING.values():
        assert stage.environment()["TRITON_SEGMENTATION_CACHE"].startswith("/tmp/")  # noqa: S108 - of the image


def gibibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()
    return int(number) / {"Gi": 1, "Mi": 1024}[unit]


def test_secrets_are_never_in_the_files(resources, options):
    assert "Secret" not in {each["kind"] for each in resources}
    held = volumes(resources)[mounts(server(resources))[str(options.admin_secret_file.parent)]["name"]]["secret"]
    assert held["items"] == [{"key": options.admin_secret_file.name, "path": options.admin_secret_file.name}]
    assert held["defaultMode"] & 0o007 == 0
    assert not held.get("optional")  # without the secret, no server
    for container in containers(resources):
        words = [*arguments(resources, container), *environment(resources, container)]
        for word in words:
            assert "file" in word or not re.search(r"(?i)secret|password|token|key", word), word


@pytest.mark.parametrize("overlay", KUBERNETES)
def test_the_repository_is_fetched_and_verified_first(overlay):
    resources = render(overlay)
    fetch, verify = pod(resources)["spec"]["initContainers"]
    words = arguments(resources, fetch)
    variables = environment(resources, fetch)
    source, target = words[-2:]
    assert words[0] == "copy"
    assert f"RCLONE_CONFIG_{source.partition(':')[0].upper()}_TYPE" in variables
    command = builder_parser().parse_args(arguments(resources, verify))
    assert verify["command"] == ["python", "-m", "builder"]
    repository = _parser().parse_args(arguments(resources, server(resources))).repository
    assert str(command.repository) == target == str(repository)
    assert mounts(fetch)[target]["name"] == mounts(verify)[target]["name"] == mounts(server(resources))[target]["name"]


def test_keys_for_signed_versions_are_mounted_where_the_overlays_say(resources):
    """They are optional; a server whose setting names a missing file does not start."""
    overlays = [path.read_text() for path in ROOT.glob("deploy/*/overlays/*/kustomization.yaml")]
    files = {re.search(rf"{TRUSTED_KEYS_VARIABLE}(?:=|, value: )(\S+?)[}}\n]", text)[1] for text in overlays}
    assert files == {"/etc/segmentation/trusted.pem"}
    for container in containers(resources):
        if container["name"] != "fetch-repository":
            mount = mounts(container)["/etc/segmentation"]
            assert mount["readOnly"] is True
            source = volumes(resources)[mount["name"]]["configMap"]
            assert source == {"name": "segmentation-trusted-keys", "optional": True}


def test_kserve_puts_the_repository_where_the_server_looks():
    for overlay in set(OVERLAYS) - set(KUBERNETES):
        resources = render(overlay)
        predictor = the(resources, "InferenceService")["spec"]["predictor"]
        assert predictor["model"]["storageUri"].startswith("s3://")
        formats = the(resources, "ServingRuntime")["spec"]["supportedModelFormats"]
        assert {key: formats[0][key] for key in ("name", "version")} == predictor["model"]["modelFormat"]
        options = _parser().parse_args(arguments(resources, server(resources)))
        assert str(options.repository) == "/mnt/models"
