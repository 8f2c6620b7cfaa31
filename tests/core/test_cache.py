"Without a home folder nothing is kept, and one line tells."
from pathlib import Path

import pytest

from ctseg.core.cache import own_cache


def test_a_user_without_a_home(monkeypatch):
    "As in a container that gives the process a number which no list of users has."
    def home(): raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CTSEG_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.warns(UserWarning, match="CTSEG_CACHE"):
        assert own_cache("masks") is None
