"""``compose.swarm.yaml`` in Docker's own swarm: three replicas on one host, callers over gRPC in its network."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil

import pytest

from tests.containers.conftest import ROOT, docker, wait_for

CALLER = """
import json, pathlib, signal, sys, threading, time
from client import SegmentationClient
from client.errors import ServerUnavailableError
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
answered, failed, lost = [], [], []
def call():
    with SegmentationClient("segmentation-server:8001", "grpc", "int8") as client:
        while not end.is_set():
            for pause_s in (0.2, 0.4, 0.8, 1.6, None):
                try:
                    answered.append(len(client.segment(pathlib.Path(sys.argv[1]))))
                    break
                except ServerUnavailableError as error:  # the next try goes to another replica
                    failed.append(repr(error))
                    time.sleep(pause_s or 0)
                except Exception as error:
                    lost.append(repr(error))
                    break
            else:
                lost.append(failed[-1])
threads = [threading.Thread(target=call) for _ in range(2)]
[thread.start() for thread in threads]
while not end.wait(1):
    print(json.dumps([len(answered), len(failed), lost]), flush=True)
[thread.join() for thread in threads]
print(json.dumps([len(answered), len(failed), lost]), flush=True)
"""
ANSWERED = 'nv_inference_request_success{model="segment_int8",version="1"} '


class Swarm:
    """The file, deployed under a name of its own."""

    def __init__(self, image):
        self.name, self.image = f"segmentation-{secrets.token_hex(3)}", image

    def deploy(self, repository):
        settings = {"MODEL_REPOSITORY": str(repository), "IMAGE": self.image, "MEMORY_LIMIT": "4g"}
        docker("stack", "deploy", "--detach=true", "--resolve-image=never", f"--compose-file={ROOT}/compose.swarm.yaml",
               self.name, env={**os.environ, **settings})  # fmt: skip

    def replicas(self, repository):
        """Ids of the containers that are healthy and serve this repository."""
        wanted = ("--filter", f"name={self.name}_triton.", "--filter", "health=healthy")
        ids = docker("ps", "--quiet", *wanted).stdout.split()
        mounts = {
            one: docker("inspect", "--format", "{{range .Mounts}}{{.Source}} {{end}}", one, check=False) for one in ids
        }
        return [one for one, done in mounts.items() if str(repository) in done.stdout.split()]

    def update(self):
        """State of the last update: if a replica dies before it is completed, Docker goes back to the old version."""
        return docker("service", "inspect", "--format={{.UpdateStatus.State}}", f"{self.name}_triton").stdout.strip()

    def answered(self, replica):
        script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())"
        text = docker("exec", replica, "python", "-c", script).stdout
        return int(float(re.search(re.escape(ANSWERED) + r"(\S+)", text)[1]))


@pytest.fixture(scope="module")
def swarm(stack):
    """The image is that of the stack, which its tests have stopped."""
    state = docker("info", "--format", "{{.Swarm.LocalNodeState}}").stdout.strip()
    if state == "inactive":
        docker("swarm", "init", "--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1:2377")
    found = Swarm("segmentation-triton:cpu")
    try:
        yield found
    finally:
        docker("rm", "--force", f"{found.name}-caller", check=False)
        docker("stack", "rm", found.name, check=False)
        label = f"label=com.docker.stack.namespace={found.name}"
        for kind in ("container", "network"):
            wait_for(lambda kind=kind: not docker(kind, "ls", "--quiet", "--filter", label).stdout, 90, f"no {kind}")
        if state == "inactive":
            docker("swarm", "leave", "--force")


def test_three_replicas_an_update_and_a_killed_one_under_traffic(swarm, built, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swarm")
    old, new = (shutil.copytree(built, folder / name) for name in ("1", "2"))
    shutil.copy(reference.photographs[1], folder / "photograph.jpg")
    (folder / "caller.py").write_text(CALLER)
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o755)
    for place in folder.parents[:2]:
        place.chmod(place.stat().st_mode | 0o055)

    swarm.deploy(old)
    wait_for(lambda: len(swarm.replicas(old)) == 3, 180, "three replicas")
    where = (f"--name={swarm.name}-caller", f"--network={swarm.name}_default", f"--volume={folder}:/in:ro")
    docker("run", "--detach", *where, "--entrypoint=python", swarm.image, "/in/caller.py", "/in/photograph.jpg")

    def traffic():
        return json.loads(docker("logs", f"{swarm.name}-caller").stdout.splitlines()[-1])

    def more(requests):
        before = 0 if requests is None else traffic()[0]
        wait_for(lambda: docker("logs", f"{swarm.name}-caller").stdout, 60, "the first answers")
        wait_for(lambda: traffic()[0] >= before + (requests or 1), 120, "answers")

    more(None)
    more(60)
    shares = [swarm.answered(one) for one in swarm.replicas(old)]
    print(f"requests by replica: {shares}")
    assert len(shares) == 3
    assert min(shares) > 0.25 * sum(shares)

    swarm.deploy(new)
    wait_for(lambda: len(swarm.replicas(new)) == 3 and not swarm.replicas(old), 300, "the update")
    more(30)
    assert min(swarm.answered(one) for one in swarm.replicas(new)) > 0
    updated, failed, lost = traffic()
    print(f"after the update: {updated} answered, {failed} tries failed, requests lost: {lost}")
    # A server that ends refuses what comes on connections that are still open; the second try finds another.
    assert lost == []
    assert failed < updated / 4

    wait_for(lambda: swarm.update() == "completed", 120, "the end of the update")
    docker("kill", swarm.replicas(new)[0])
    wait_for(lambda: len(swarm.replicas(new)) == 2, 30, "the end of one")
    wait_for(lambda: len(swarm.replicas(new)) == 3, 120, "another in its place")
    more(30)
    killed, failed_in_all, lost = traffic()
    print(f"after a kill: {killed - updated} answered, {failed_in_all - failed} tries failed, requests lost: {lost}")
    assert lost == []
