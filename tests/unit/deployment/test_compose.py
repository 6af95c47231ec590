"""The stack's recipe, as Docker Compose itself reads it."""

import re
from pathlib import Path

import pytest
import yaml

from client.__main__ import _parser as client_parser
from monitoring.dashboard import DATASOURCE
from serving.__main__ import _parser
from tests.compose import PROFILES, ROOT, STACKS, resolved

SERVICES = sorted(resolved(*PROFILES)["services"])
ONE_SHOT = ("builder", "client")


@pytest.fixture(scope="module", params=STACKS)
def stack(request):
    return request.param


@pytest.fixture(scope="module")
def services(stack):
    return resolved(*PROFILES, stack=stack)["services"]


@pytest.mark.parametrize(
    ("profiles", "more"),
    [
        ((), set()),
        (("client",), {"client"}),
        (("monitoring",), {"prometheus", "grafana"}),
        (("load",), {"load-master", "load-worker"}),
    ],
)
def test_profiles_hold_what_they_say_with_and_without_a_gpu(stack, profiles, more):
    assert set(resolved(*profiles, stack=stack)["services"]) == {"triton", "builder"} | more


def test_images_are_built_from_this_checkout_and_asked_of_no_registry(services, stack):
    """One service builds each image, whenever code changes; those that share it neither build nor pull."""
    built = [service["image"] for service in services.values() if "build" in service]
    assert len(built) == len(set(built)) == (2 if stack == "cpu" else 3)
    for name, service in services.items():
        if name not in ("prometheus", "grafana"):
            assert service["pull_policy"] == ("build" if "build" in service else "never")
            assert service["image"] in built


def test_no_feature_of_newer_engines_is_used(services):
    """``start_interval`` needs Engine 25."""
    assert all("start_interval" not in service.get("healthcheck", {}) for service in services.values())


@pytest.mark.parametrize("name", SERVICES)
def test_another_user_needs_no_other_image(stack, name):
    usual, other = (
        resolved(*PROFILES, stack=stack, **variables)["services"][name]
        for variables in ({}, {"SEGMENTATION_UID": "4321", "SEGMENTATION_GID": "99"})
    )
    assert usual["user"].startswith("1000:")
    assert other["user"].startswith("4321:")
    assert usual.get("build") == other.get("build")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_bounded(services, name):
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert int(service["user"].split(":")[0]) > 0
    assert service["logging"]["options"]["max-size"]
    limits = service["deploy"]["resources"]["limits"]
    assert int(limits["memory"]) > 0
    assert int(limits["pids"]) > 0
    assert "network_mode" not in service
    assert "pid" not in service
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(services, name):
    assert all(port["host_ip"] == "127.0.0.1" for port in services[name].get("ports", []))


def test_servers_see_the_repository_read_only_and_models_have_room(services):
    service = services["triton"]
    mounts = {volume["target"]: volume for volume in service["volumes"]}
    assert mounts["/models"]["read_only"] is True
    assert int(service["shm_size"]) >= 512 * 1024**2
    assert {port["target"] for port in service["ports"]} == {8000, 8001, 8002}
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "serving.health", "127.0.0.1:8000"]


def test_servers_are_stopped_later_than_they_stop_by_themselves(services):
    service = services["triton"]
    options = _parser().parse_args(service["command"])
    assert seconds(service["stop_grace_period"]) > options.exit_timeout_s + 10
    assert str(options.repository) == "/models"
    assert options.admin_secret_file is not None


def test_the_gpu_is_asked_for_where_it_is_needed(services, stack):
    for name, service in services.items():
        devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        wanted = stack == "gpu" and name in ("triton", "builder")
        assert [device["capabilities"] for device in devices] == ([["gpu"]] if wanted else [])


def test_services_wait_for_what_they_need(services):
    assert services["triton"]["depends_on"]["builder"]["condition"] == "service_completed_successfully"
    assert services["client"]["depends_on"]["triton"]["condition"] == "service_healthy"
    assert services["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"
    for name in ONE_SHOT:
        assert services[name]["restart"] == "no"
    for name in set(services) - set(ONE_SHOT):
        assert services[name]["restart"] == "unless-stopped"


def test_the_environment_example_holds_the_knobs_and_their_defaults():
    text = "".join((ROOT / name).read_text() for name in STACKS["gpu"])
    used: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        used.setdefault(name, set()).add(default)
    assert not re.findall(r"\$\{\w+\}", text), "a knob without a default"
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert example.pop("COMPOSE_FILE") == "docker-compose.yml"
    assert set(example) == set(used)
    for name, value in example.items():
        assert value in used[name], name
    # The example is read as it is without changing a thing.
    for stack in STACKS:
        assert resolved(*PROFILES, stack=stack, **example) == resolved(*PROFILES, stack=stack)


def test_the_client_of_the_stack_is_the_projects(services):
    assert services["client"]["image"] == services["triton"]["image"]
    entry = services["client"]["entrypoint"]
    assert entry[:3] == ["python", "-m", "client"]
    assert client_parser().parse_args([*entry[3:], "/images", "--out", "/out"]).url == "segmentation-server:8001"


def test_knobs_reach_the_server():
    changed = resolved(stack="gpu", PREPROCESS_INSTANCES="7", SEGMENTATION_PROFILE="cpu", TRITON_MONTH="26.12", GPU="1")
    triton = changed["services"]["triton"]
    options = _parser().parse_args(triton["command"])
    assert (options.preprocess_instances, options.profile) == (7, "cpu")
    assert triton["image"].endswith(":26.12")
    assert triton["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["1"]


def test_prometheus_scrapes_the_servers_by_the_name_that_they_have(services):
    targets = yaml.safe_load((ROOT / "monitoring/targets.compose.yml").read_text())[0]["targets"]
    host, port = targets[0].split(":")
    assert host in services["triton"]["networks"]["default"]["aliases"]
    assert int(port) == 8002
    assert f"--url={host}:8001" in services["client"]["entrypoint"]
    for name in ("load-master", "load-worker"):
        assert f"--url-grpc={host}:8001" in services[name]["command"]


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_are_there(services, name):
    for volume in services[name].get("volumes", []):
        if volume["type"] == "bind":
            assert Path(volume["source"]).exists(), volume


def test_grafana_is_provisioned_with_the_data_source_that_the_dashboard_asks():
    source = yaml.safe_load((ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert [entry["uid"] for entry in source["datasources"]] == [DATASOURCE["uid"]]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def seconds(duration):
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def test_the_ready_message_names_the_published_ports(capsys):
    command = resolved(BIND_ADDRESS="0.0.0.0", HTTP_PORT="8010")["services"]["triton"]["command"]  # noqa: S104 - a knob
    assert _parser().parse_args(command).published == ("127.0.0.1:8010", "127.0.0.1:8001", "127.0.0.1:8002")
    with pytest.raises(SystemExit):
        _parser().parse_args(["run", "--published=8000"])
    assert "expected ADDRESS:HTTP,GRPC,METRICS" in capsys.readouterr().err
