"""What tests of versions share: machines, a server that is a stand-in, and the commands about versions."""

from __future__ import annotations

import argparse

from base.gpu import Gpu
from builder.versions_cli import add_commands
from pipeline import contract
from repository.live import LiveError
from repository.plans import Machine
from tests.versions import add_version

H100 = Machine((10, 13, 0), "a test", Gpu("NVIDIA H100", "9.0"))
L4 = Machine((10, 13, 0), "a test", Gpu("NVIDIA L4", "8.9"))
NO_GPU = Machine(None, "no library", None)


def add_versions(repository, count, **options):
    """Write so many versions; options as those of :func:`tests.versions.add_version`."""
    for _ in range(count):
        add_version(repository, **options)


class FakeServer:
    """A running server that serves what the configurations name when it loads them.

    Args:
        repository: that it serves.
        profile: cpu, tensorrt or cuda.
        broken: precision and version that it cannot serve.
    """

    def __init__(self, repository, profile="cpu", broken=None):
        self.name, self.broken, self.loads = "the fake", broken, []
        self._named = lambda model: tuple(repository.named_versions(model.removeprefix("network_"), profile))
        self.serves = {model: self._named(model) for model in map(contract.network_model, contract.PRECISIONS)}

    def wait_live(self):
        pass

    def ready_versions(self, model):
        return self.serves[model]

    def is_model_ready(self, model):
        return True

    def is_ready(self):
        return self.broken is None

    def reload(self, model):
        self.serves[model] = self._named(model)
        self.loads.append((model, self.serves[model]))

    def check_answers(self, precision, version, input_dims):
        assert input_dims == (640, 640, 3)
        assert self.serves[contract.network_model(precision)] == (version,)
        if (precision, version) == self.broken:
            raise LiveError("the fake answers nonsense")


def run(repository, *arguments):
    """Run a command about versions; returns its exit status."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args([*arguments, "--repository", str(repository.path)])
    return options.run(options)
