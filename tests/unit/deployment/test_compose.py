"""The stack's recipe, as Docker Compose itself reads it."""

import re
from pathlib import Path

import pytest
import yaml

from client.__main__ import _parser as client_parser
from monitoring.dashboard import DATASOURCE
from serving.__main__ import _parser
from tests.compose import PROFILES, ROOT, resolved

SERVICES = sorted(resolved(*PROFILES)["services"])
SERVERS = ("triton", "triton-cpu")
ONE_SHOT = ("builder", "builder-cpu", "client")


@pytest.fixture(scope="module")
def services():
    return resolved(*PROFILES)["services"]


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ((), {"triton"}),
        (("cpu",), {"triton", "triton-cpu", "builder-cpu"}),
        (("build",), {"triton", "builder"}),
        (("client",), {"triton", "client"}),
        (("monitoring",), {"triton", "prometheus", "grafana"}),
        (("load",), {"triton", "load-master", "load-worker"}),
    ],
)
def test_profiles_hold_what_they_say(profiles, expected):
    assert set(resolved(*profiles)["services"]) == expected


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


@pytest.mark.parametrize("name", SERVERS)
def test_servers_see_the_repository_read_only_and_models_have_room(services, name):
    service = services[name]
    mounts = {volume["target"]: volume for volume in service["volumes"]}
    assert mounts["/models"]["read_only"] is True
    assert int(service["shm_size"]) >= 512 * 1024**2
    assert {port["target"] for port in service["ports"]} == {8000, 8001, 8002}
    assert "/v2/health/ready" in " ".join(service["healthcheck"]["test"])


@pytest.mark.parametrize("name", SERVERS)
def test_servers_are_stopped_later_than_they_stop_by_themselves(services, name):
    options = _parser().parse_args(services[name]["command"])
    assert seconds(services[name]["stop_grace_period"]) > options.exit_timeout_s + 10
    assert str(options.repository) == "/models"
    assert options.admin_secret_file is not None


def test_the_gpu_is_asked_for_where_it_is_needed(services):
    for name, service in services.items():
        devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        assert [device["capabilities"] for device in devices] == ([["gpu"]] if name in ("triton", "builder") else [])


def test_services_wait_for_what_they_need(services):
    assert services["triton-cpu"]["depends_on"]["builder-cpu"]["condition"] == "service_completed_successfully"
    assert services["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"
    for name in ONE_SHOT:
        assert services[name]["restart"] == "no"
    for name in set(services) - set(ONE_SHOT):
        assert services[name]["restart"] == "unless-stopped"


def test_the_environment_example_holds_the_knobs_and_their_defaults():
    text = (ROOT / "docker-compose.yml").read_text()
    used: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        used.setdefault(name, set()).add(default)
    assert not re.findall(r"\$\{\w+\}", text), "a knob without a default"
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert set(example) == set(used)
    for name, value in example.items():
        assert value in used[name], name
    # The example is read as it is without changing a thing.
    assert resolved(*PROFILES, **example)["services"]["triton"] == resolved(*PROFILES)["services"]["triton"]


def test_the_client_of_the_stack_is_the_projects(services):
    assert services["client"]["image"] == services["triton"]["image"]
    entry = services["client"]["entrypoint"]
    assert entry[:3] == ["python", "-m", "client"]
    assert client_parser().parse_args([*entry[3:], "/images", "--out", "/out"]).url == "segmentation-server:8001"


def test_knobs_reach_the_server(services):
    changed = resolved(PREPROCESS_INSTANCES="7", SEGMENTATION_PROFILE="cpu", TRITON_MONTH="26.12", GPU="1")
    triton = changed["services"]["triton"]
    options = _parser().parse_args(triton["command"])
    assert (options.preprocess_instances, options.profile) == (7, "cpu")
    assert triton["image"].endswith(":26.12")
    assert triton["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["1"]


def test_prometheus_scrapes_the_servers_by_the_name_that_they_have(services):
    targets = yaml.safe_load((ROOT / "monitoring/targets.compose.yml").read_text())[0]["targets"]
    host, port = targets[0].split(":")
    for name in SERVERS:
        assert host in services[name]["networks"]["default"]["aliases"]
    assert int(port) == 8002
    assert f"--url={host}:8001" in services["client"]["entrypoint"]
    for name in ("load-master", "load-worker"):
        assert f"--url-grpc={host}:8001" in services[name]["command"]


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_are_there(services, name):
    for volume in services[name].get("volumes", []):
        if volume["type"] == "bind" and volume["target"] not in ("/images", "/out"):
            assert Path(volume["source"]).exists(), volume


def test_grafana_is_provisioned_with_the_data_source_that_the_dashboard_asks():
    source = yaml.safe_load((ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert [entry["uid"] for entry in source["datasources"]] == [DATASOURCE["uid"]]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def seconds(duration):
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    return 60 * int(found[1] or 0) + int(found[2] or 0)
