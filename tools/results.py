"Where the scripts of trainings keep what they measured, for the benchmark notebooks to read."
from pathlib import Path

import numpy as np

from ctseg.core.atomic import atomic_path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/"nbs"/"benchmarks"/"results"


def write_arrays(path: Path, **arrays) -> None:
    "An .npz file, whole or not at all."
    with atomic_path(path) as tmp: np.savez_compressed(tmp, **arrays)
