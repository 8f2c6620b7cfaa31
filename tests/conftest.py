"""One thread: the networks of the tests are tiny, and results do not depend on the number of cores. Set
before torch is imported."""
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CTSEG_CPU_PRECISION", "fp32")  # the same numbers on every processor

from hypothesis import settings

# a second run tries the same examples: what fails, fails for everybody
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are named by their argument: packed ones hold the time, and two workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """A small challenge folder of 54 structures: 24 training slices, 10 of them annotated, and 8 test
    slices, 64x64."""
    from ctseg.phantom import make_phantom
    folder = tmp_path_factory.mktemp("phantom")/"data"
    make_phantom(folder, labelled=10, unlabelled=14, test=8, size=64, seed=2500, empty=0.1)
    return folder


@pytest.fixture
def registries():
    """What a notebook or a plugin registers, its own copies of the package's classes among it, is not for the
    tests after it."""
    from ctseg.runs.recipe import REGISTRIES
    kept = [(registry, dict(registry.entries)) for registry in REGISTRIES.values()]
    yield
    for registry, entries in kept:
        registry.entries = entries
