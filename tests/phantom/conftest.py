import pytest

from ctseg.phantom import phantom_slices


@pytest.fixture(scope="session")
def world():
    "120 slices with full truth."
    return phantom_slices(120, size=64, seed=2)
