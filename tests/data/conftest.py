"A valid challenge folder, and a cache of its own for every test."
import pytest
from helpers.folders import random_slices

from ctseg.data.challenge import write_challenge


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def data(tmp_path):
    "A valid challenge folder."
    write_challenge(random_slices(), tmp_path/"data")
    write_challenge(random_slices(8, seed=1, full=True), tmp_path/"data", "test")
    return tmp_path/"data"
