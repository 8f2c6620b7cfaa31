"The names of `import ctseg`: they exist, come late, and do the job in five lines."
import subprocess
import sys

import numpy as np
from helpers.toys import small, toy

import ctseg


def test_every_name_is_there_and_says_what_it_does():
    for name in ctseg.__all__:
        assert getattr(ctseg, name).__doc__, name
    assert set(ctseg.__all__) == {*ctseg.HOMES, *ctseg.SHORT} <= set(dir(ctseg))


def test_nothing_heavy_is_imported_before_it_is_used():
    code = "import sys, ctseg; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pandas', 'timm')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_of_the_command_needs_no_torch():
    code = "import sys, ctseg.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_fit_load_predict(tmp_path):
    slices = toy()
    run = ctseg.fit(slices, small("masked"), tmp_path/"run", device="cpu", progress=False)
    masks = ctseg.load(run.folder, "cpu").predict(slices.images)
    assert masks.shape == slices.images.shape and masks.dtype == np.uint8
