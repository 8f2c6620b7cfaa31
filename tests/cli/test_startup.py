"A command loads what it needs, and no more: heavy packages that it does not use stay on the disk."
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.toys import small, toy

import ctseg

SAMPLE = Path(__file__).resolve().parents[2]/"data_sample"  # it tells its patients: no search for near-duplicates
TABLES = {"pandas", "scipy", "skimage", "matplotlib", "jinja2"}
READERS = {"nibabel", "pydicom", "highdicom", "zarr"}
COMPILER = {"torch._dynamo", "sympy"}
WATCHED = TABLES | READERS | COMPILER | {"torch", "timm", "psutil", "accelerate", "scipy.ndimage", "scipy.optimize"}
COMMAND = f"""
import gc
import sys
from ctseg.cli.main import main

try: main()
finally:
    loaded = {WATCHED} & set(sys.modules)
    if gc.get_freeze_count(): loaded.add("frozen")
    assert gc.isenabled()
    print(*loaded, file=sys.__stderr__)
"""
# a plugin is executed once the command has loaded its modules
STOP = """
from ctseg.training.loop import Trainer

def stop(trainer, index): raise SystemExit(0)

Trainer.step = stop
"""


def loaded_by(*args) -> set[str]:
    "The packages that a command has loaded at its end, of those that are watched."
    words = [sys.executable, "-W", "ignore", "-c", COMMAND, *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_help_needs_nothing():
    assert loaded_by("--help") == set()


def test_check_needs_no_torch():
    assert loaded_by("check", SAMPLE) == set()


def test_fit_begins_without_tables_and_readers(tmp_path):
    (tmp_path/"stop.py").write_text(STOP)
    words = "--plugin", tmp_path/"stop.py", "--device", "cpu", "--set", "width=4", "--out", tmp_path/"run"
    # PyTorch's optimisers load its compiler
    assert loaded_by("fit", SAMPLE, *words) == {"torch", "accelerate", "psutil", "frozen", *COMPILER}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    "A run folder, whose masks are the most probable classes."
    recipe = ctseg.runs.recipe.apply_settings(small("masked"), ["tune_rule=False"])
    return ctseg.fit(toy(), recipe, tmp_path_factory.mktemp("run")/"run", device="cpu", progress=False).folder


def test_predict_needs_nothing_of_training(run, tmp_path):
    ctseg.write_challenge(toy()[:2], tmp_path/"data")
    words = "--images", tmp_path/"data/train-images", "--out", tmp_path/"s.csv", "--device", "cpu"
    assert loaded_by("predict", run, *words) == {"torch", "psutil", "frozen"}


def test_segment_needs_no_tables(run, tmp_path):
    volume = np.random.default_rng(0).normal(0, 200, (32, 32, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([2., 2, 5, 1])), tmp_path/"scan.nii.gz")
    words = "--out", tmp_path/"out", "--device", "cpu", "--size", 32, "--spacing", 2
    loaded = loaded_by("segment", run, tmp_path/"scan.nii.gz", *words)
    assert loaded & {"pandas", "scipy.ndimage", "scipy.optimize", "matplotlib", "accelerate", *COMPILER} == set()
    assert {"torch", "nibabel", "frozen"} <= loaded
