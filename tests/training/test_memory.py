"A run that cannot fit is refused before it starts."
import psutil
import pytest
from helpers.toys import small, toy

from ctseg.core.errors import InputError
from ctseg.recipes.fit import fit


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="limits of a process are Linux's")
def test_a_limit_of_the_process_is_seen(tmp_path, monkeypatch):
    left = psutil.Process().memory_info().vms + 8*2**20  # where a thread may not start, and Python waits for ever
    monkeypatch.setattr(psutil.Process, "rlimit", lambda *_: (left, left))
    with pytest.raises(InputError, match="0.0 GB of memory are free"):
        fit(toy(), small("masked"), tmp_path/"run", device="cpu", progress=False)
    assert not (tmp_path/"run").exists()
