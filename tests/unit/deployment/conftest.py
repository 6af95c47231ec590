import pytest

from tests.unit.deployment.rendered import OVERLAYS, render


@pytest.fixture(params=OVERLAYS)
def resources(request):
    """Everything that one overlay of ``deploy/`` makes."""
    return render(request.param)
