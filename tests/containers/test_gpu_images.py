"""The Dockerfiles of the GPU's stack, built on stand-ins for NVIDIA's bases, which no registry here has."""

from __future__ import annotations

import pytest

from client import SegmentationClient
from serving.environment import free_ports
from tests.containers.conftest import ROOT, docker, wait_for
from tests.dockerfiles import stages

# As in NVIDIA's image: tritonserver in /opt/tritonserver, the distribution's Python, without ensurepip.
TRITON = """
FROM segmentation-triton:cpu AS served
FROM {base}
COPY --from=served /opt/tritonserver /opt/tritonserver
RUN rm -r "$(python3 -c 'import ensurepip; print(ensurepip.__path__[0])')"
ENV PATH=/opt/tritonserver/bin:$PATH \\
    LD_LIBRARY_PATH=/opt/tritonserver/lib \\
    TRITON_SERVER_VERSION=2.51.0
"""


@pytest.fixture(scope="module")
def server_image(stack):
    """Built as Compose builds it; it is not left, and neither is what stood in for its base."""
    python, triton = (stage.base for stage in stages(ROOT / "serving/Dockerfile") if stage.name in ("packages", "gpu"))
    name = f"{stack.project}-gpu"
    stands_in = docker("image", "inspect", triton, check=False).returncode != 0
    if stands_in:
        docker("build", "--quiet", f"--tag={triton}", "-", input=TRITON.format(base=python))
    try:
        docker("build", "--quiet", "--file=serving/Dockerfile", "--target=gpu", f"--tag={name}", ".", cwd=stack.folder)
        yield name
    finally:
        docker("rmi", "--force", name, *([triton] if stands_in else []), check=False)


def test_the_gpu_image_of_the_server_serves_the_cpu_profile(server_image, built, reference):
    (port,) = free_ports("127.0.0.1", 1)
    built.chmod(0o755)
    confined = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777,size=256m")
    where = (f"--publish=127.0.0.1:{port}:8001", f"--volume={built}:/models:ro", "--shm-size=1g")
    try:
        docker("run", "--detach", f"--name={server_image}", *confined, *where, "--user=0", server_image,
               "run", "--profile=cpu", "--repository=/models", "--host=0.0.0.0")  # fmt: skip
        wait_for(lambda: "Ctrl-C stops" in docker("logs", server_image).stdout, 120, "the server")
        with SegmentationClient(f"127.0.0.1:{port}", "grpc", "int8") as client:
            assert [len(client.segment(one)) for one in reference.photographs] == [1, 3, 2, 1, 1]
    finally:
        docker("rm", "--force", server_image, check=False)
