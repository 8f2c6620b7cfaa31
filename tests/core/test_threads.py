"As many threads as there are free processors, and no more than the user says."
import subprocess
import sys

import numpy as np
import pytest

from ctseg.core.threads import allowed_cpus, cpu_share, free_threads, set_threads


@pytest.mark.parametrize("cpus, share, busy, threads", [
    (2, np.inf, 0., None), (2, np.inf, .4, None), (2, np.inf, 1., 1), (2, np.inf, 2., 1), (8, np.inf, 3., 5), (16, 4., 0., 4), (1, np.inf, 1., 1),
    (8, 2., 0., 2), (8, .5, 0., 1),
])
def test_as_many_threads_as_free_processors(cpus, share, busy, threads):
    assert free_threads(cpus, share, busy) == threads


@pytest.mark.parametrize("text, "
                         "share", [("max 100000", np.inf), ("150000 100000", 1.5), ("nonsense", np.inf)])
def test_share_of_a_container(tmp_path, text, share):
    (tmp_path/"cpu.max").write_text(text)
    assert cpu_share(tmp_path/"cpu.max") == share and cpu_share(tmp_path/"none") == np.inf


def test_the_user_is_not_overruled():
    def all_busy(): return float(len(allowed_cpus()))
    def decided(number=None, **given):
        set_threads(given, look=all_busy, number=number)
        return given
    assert decided() == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    assert decided(OMP_NUM_THREADS="7") == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "7"}
    assert decided(GOMP_SPINCOUNT="9") == {"GOMP_SPINCOUNT": "9", "OMP_NUM_THREADS": "1"}
    assert decided(number=5)["OMP_NUM_THREADS"] == "5"


def test_nothing_heavy_is_imported():
    code = "import sys, ctseg.core.threads; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
