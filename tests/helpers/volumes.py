"Small volumes, errors of one line that name nobody, and files that leak nothing."

from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.io.index import read_index, restack
from ctseg.io.volumes import Volume

NAME, DAY, NUMBER = "Planted^Patience", "19370401", "QX-4711"
SECRETS = ("Planted", "Patience", DAY, "1937-04-01", NUMBER)
TWO = ClassMap.from_names(["kidney_left", "kidney_right"])


def one_line(error) -> str:
    "The text of an `InputError`: one line that names nobody."
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and len(text) > 20
    for secret in SECRETS:
        assert secret.lower() not in text.lower()
    return text


def leaks(folder) -> list[Path]:
    "The files below whose bytes or names show the patient."
    leaky = []
    for path in filter(Path.is_file, Path(folder).rglob("*")):
        text = path.read_bytes().lower() + str(path.relative_to(folder)).lower().encode()
        if any(secret.lower().encode() in text for secret in SECRETS):
            leaky.append(path)
    return leaky


def affine_from(q, mm=(1, 2, 3)):
    w, x, y, z = np.array(q) / np.linalg.norm(q)
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    A = np.eye(4)
    A[:3, :3], A[:3, 3] = R * mm, [5, -7, 11]
    return A


def volume(seed, shape=(9, 12, 5), A=None, known=None, labels=True):
    rng = np.random.default_rng(seed)
    return Volume(
        rng.normal(0, 300, shape).astype(np.float32),
        affine_from([1, 0.1, 0.2, 0.05]) if A is None else A,
        rng.integers(0, 3, shape, dtype=np.uint8) if labels else None,
        np.ones(2, bool) if known is None else known,
    )


def put_back(s, folder, split="train"):
    volumes, lines = read_index(folder, split)
    out = {}
    for id, entry in volumes.items():
        mine = [i for i, n in enumerate(s.names) if lines[n]["volume"] == id]
        if mine:
            out[id] = restack(s.masks[mine], entry, [lines[s.names[i]] for i in mine], 255)
    return out


HU, GRID = volume(0).hu, volume(0).affine


def save(a, path, affine=GRID):
    "A NIfTI file and the folders above it."
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(a, affine), path)
