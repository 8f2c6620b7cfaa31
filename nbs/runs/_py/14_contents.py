# %% [markdown]
# # Contents of a run folder
#
# > What each file of a run folder may hold, said once and checked where it is read.

# %%
#| default_exp runs.contents

# %%
#| export
import csv
import io
import math
import os
import re
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ctseg.core.anatomy import check_classes
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.core.schema import (
    COUNT, HOW_CUT, LONGEST, SPAN, Unexpected, anything, fields, listed, mapped, maybe, number, text,
)
from ctseg.core.tables import table_text
from ctseg.data.cache import array_header, array_shapes
from ctseg.data.lazy import LazyPixels, ReadPixels, blocks
from ctseg.runs.sums import check_sum

if TYPE_CHECKING:
    import pandas as pd

# %%
#| hide
import tempfile

from fastcore.test import test_eq


# %% [markdown]
# A run folder may come from a colleague, a disk with faults, or an editor. Its files have [checksums](13_sums.ipynb), but older runs have none. What a file may hold is described here.
#
# ## `recipe.json`

# %%
#| export
def class_table(value: Any) -> None:
    "Objects from the ids 1, 2, …, in this order, to names of classes."
    mapped(text)(value)
    ids = [str(id) for id in range(1, len(value) + 1)]
    if list(value) != ids:
        raise Unexpected(value, "one with the ids 1, 2, … in order")
    try:
        check_classes(tuple(value.values()), ())
    except InputError as e:
        raise Unexpected(value, f"classes of different names ({e})") from None


# %%
#| export
def sha256(value: Any) -> None:
    "A hash, 64 hexadecimal digits."
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise Unexpected(value, "64 hexadecimal digits")

SPEC = fields(
    {
        "recipe": mapped(anything),  # its groups are checked where the settings are declared
        "seed": COUNT,
        "data": fields({"fingerprint": text, "images": COUNT, "labelled": COUNT}),
        "classes": class_table,
        "image_shape": listed(number(1, LONGEST, whole=True), 2),
    },
    {
        "threads": number(1, 1 << 12, whole=True),
        "plugins": listed(fields({"name": text, "sha256": sha256})),
        "versions": mapped(text),
        "unions": mapped(listed(text)),
        "slicing": maybe(HOW_CUT),
        "neighbour_mm": SPAN,
        "init": fields({}, {"weights": text}),
        "teacher": fields({}, {"weights": text}),
    },
)

# %%
good = {"recipe": {"name": "toy"}, "seed": 0, "data": {"fingerprint": "ab", "images": 2, "labelled": 1},
        "classes": {"1": "liver", "2": "spleen"}, "image_shape": [32, 32]}
SPEC(good)
for wrong in (
    {"seed": True},
    {"classes": {"2": "liver"}},
    {"image_shape": [32, "32"]},
    {"slicing": {"window": [40]}},
    {"plugins": [{"name": "x.py", "sha256": "../../x"}]},
):
    try: SPEC(good | wrong)
    except Unexpected as e: print(e)

# %% [markdown]
# ## Tables
#
# The files beside the weights are plain CSV, which people open and save again. Every cell is looked at: a table with a line too short would give numbers under the wrong heading.

# %%
#| export
Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
POSITIVE: Range = (0, math.inf)
SHARE: Range = (0, 1)
HISTORY: dict[str, Range] = {"epoch": (1, 1e9), "loss": ANY, "dice": SHARE}
TIMINGS: dict[str, Range] = {"epoch": (1, 1e9), "seconds": POSITIVE}
RELIABILITY: dict[str, Range] = {"said": SHARE, "was": SHARE, "pairs": POSITIVE}
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|", re.ASCII)

# %%
#| export
REMEDY = "copy the run folder again, or delete the file to do without it"

def damaged_file(path: Path, problem: str) -> InputError:
    "The error for a file of a run folder that is of no use."
    return InputError(f"{path}: {problem}; {REMEDY}")


# %%
#| export
def read_rows(path: Path) -> list[list[str]]:
    "The lines of a CSV as cells, the header first, all of one length; `InputError` for a damaged file."
    content = io.StringIO(table_text(path, REMEDY), newline="")
    try:
        rows = list(csv.reader(content, strict=True))
    except csv.Error:
        raise damaged_file(path, "not a readable table") from None
    if not rows or not rows[0]:
        raise damaged_file(path, "not a readable table, it is empty")
    header = rows[0]
    for line, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise damaged_file(path, f"line {line} has {len(row)} cells, expected {len(header)}")
        if not all(map(str.isprintable, row)):
            raise damaged_file(path, f"line {line} holds what cannot be printed in a line")
    if len(set(header)) < len(header):
        raise damaged_file(path, "two columns have the same name")
    return rows


# %%
#| export
def as_numbers(cells: list[str], column: str, limits: Range, path: Path) -> np.ndarray:
    "The cells of a column as int64, or as float64 where one has a point or is empty; `InputError` for other things than numbers in their limits."
    low, high = limits
    values = []
    for line, cell in enumerate(cells, 2):
        value = math.inf
        if _NUMBER.fullmatch(cell):
            value = float(cell or "nan")
        if math.isinf(value) or value < low or value > high:
            raise damaged_file(path, f"line {line}, {column}: {cell[:30]!r} is no number that can be there")
        values.append(value)
    if all(re.fullmatch(r"-?\d{1,18}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], np.int64)
    return np.array(values, np.float64)


# %%
#| export
def read_run_table(
    path: Path, # a CSV of a run folder
    numbers: dict[str, Range], # columns of numbers it must have, and their limits
    texts: tuple[str, ...] = (), # other columns it must have
) -> "pd.DataFrame | None": # None: there is no such file
    "A table that a run has written; `InputError` for a damaged one."
    if not os.path.lexists(path): return None
    header, *rows = read_rows(path)
    for column in (*texts, *numbers):
        if column not in header:
            raise damaged_file(path, f"a table without the column {column}")
    table: dict[str, Any] = {}
    for position, column in enumerate(header):
        cells = [row[position] for row in rows]
        table[column] = cells
        if column in texts: continue
        if column in numbers or all(map(_NUMBER.fullmatch, cells)):
            limits = numbers.get(column, ANY)
            table[column] = as_numbers(cells, column, limits, path)
    check_sum(path)
    import pandas as pd  # slow, and only needed here
    return pd.DataFrame(table)


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"history.csv"
    path.write_text("phase,epoch,loss,dice\nfirst,1,0.5,\nfirst,2,0.25,0.5\n")
    table = read_run_table(path, HISTORY, ("phase",))
    print(table)
    test_eq(read_run_table(Path(d)/"nothing.csv", {}), None)
    for damaged in (
        "",
        "epoch,loss\n1,0.5\n",
        "phase,epoch,loss,dice\nfirst,1,0.5,broken\n",
        "phase,epoch,loss,dice\nfirst,1,0.5\n",
    ):
        path.write_text(damaged)
        try: read_run_table(path, HISTORY)
        except InputError as e: print(str(e).replace(d, "…").partition(";")[0])


# %% [markdown]
# ## Pseudo-labels
#
# There are as many label maps as slices that nobody annotated. So they are written one after the other, and stay in the file when it is read.

# %%
#| export
def write_pseudo(arrays: dict[str, np.ndarray|LazyPixels], path: Path):
    "Write `pseudo_labels.npz`, whole or not at all; lazy label maps in the memory of a block."
    with atomic_path(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
                if not isinstance(array, LazyPixels):
                    np.lib.format.write_array(f, array, allow_pickle=False)
                    continue
                header = {"descr": "|u1", "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(f, header)
                for block in blocks(array): f.write(block.tobytes())


# %% [markdown]
# Whoever wants some of them passes over the whole file, since it is compressed. So its checksum is compared each time.

# %%
#| export
_NO_PSEUDO = "not what a teacher drew on these slices"

def _open_labels(archive: zipfile.ZipFile) -> tuple[IO[bytes], tuple[int, int, int]]:
    "The label maps in an open archive, and their shape."
    f = archive.open("labels.npy")
    shape, dtype = array_header(f)
    if dtype != np.uint8 or len(shape) != 3: raise ValueError("no label maps")
    return f, shape


# %% [markdown]
# Several maps are read in one pass.

# %%
#| export
def _read_packed(path: Path, rows: np.ndarray) -> np.ndarray:
    "Some label maps: the whole file is passed over, since it is compressed, and its checksum compared."
    maps = []
    with zipfile.ZipFile(path) as archive:
        f, (n, height, width) = _open_labels(archive)
        with f:
            for row in range(n):
                content = f.read(height*width)
                if row not in rows: continue
                flat = np.frombuffer(content, np.uint8)
                maps.append(flat.reshape(height, width))
            if f.read(1): raise ValueError("more than it says")
    return np.stack(maps)


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"pseudo_labels.npz"
    write_pseudo({"labels": np.arange(12, dtype=np.uint8).reshape(3, 2, 2)}, path)
    print(_read_packed(path, np.array([1])).tolist())


# %%
#| export
def _packed_labels(path: Path) -> LazyPixels:
    "The label maps of `pseudo_labels.npz`, read when they are asked for; `InputError` if they are damaged by then."
    def read(rows: np.ndarray) -> np.ndarray:
        try:
            return _read_packed(path, rows)
        except Exception as e:  # each way of being damaged has its own
            refuse_unread(path, e)
            raise damaged_file(path, _NO_PSEUDO) from None
    with zipfile.ZipFile(path) as archive:
        f, shape = _open_labels(archive)
        f.close()
    return LazyPixels(ReadPixels(read, shape))


# %%
#| export
_PSEUDO_KINDS = {"labels": "u", "kept": "b", "names": "U"}  # of NumPy's types; all else are confidences

def _fits_pseudo(pseudo: dict[str, Any]) -> bool:
    "Are these arrays of pseudo-labels, an entry a slice, with finite confidences?"
    labels = pseudo["labels"]
    if labels.dtype != np.uint8 or labels.ndim != 3: return False
    if not pseudo.keys() >= _PSEUDO_KINDS.keys(): return False
    for name, array in pseudo.items():
        kind = _PSEUDO_KINDS.get(name, "f")
        if array.dtype.kind != kind: return False
        if array.shape[:1] != labels.shape[:1]: return False
        if kind == "f" and not np.isfinite(array).all(): return False
    return True

def read_pseudo(path: Path) -> dict[str, Any]:
    "`pseudo_labels.npz`: `labels` uint8 [N, H, W], lazy, `kept` bool [N], `names` [N], and confidences [N] by name; `InputError` for another file."
    refuse_special(path)
    try:
        shapes = array_shapes(path)
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1: raise ValueError("of different lengths")
        with np.load(path) as archive:
            pseudo = {name: archive[name] for name in archive.files if name != "labels"}
        pseudo["labels"] = _packed_labels(path)
        fits = _fits_pseudo(pseudo)
    except Exception as e:  # each way of being damaged has its own
        refuse_unread(path, e)
        fits = False
    if not fits:
        raise damaged_file(path, _NO_PSEUDO)
    check_sum(path)
    return pseudo


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"pseudo_labels.npz"
    pseudo = {
        "labels": np.zeros((2, 8, 8), np.uint8),
        "kept": np.array([True, False]),
        "names": np.array(["0.png", "1.png"]),
    }
    for labels in (pseudo["labels"], LazyPixels(ReadPixels(pseudo["labels"].__getitem__, (2, 8, 8)))):
        write_pseudo(pseudo | {"labels": labels}, path)
        back = read_pseudo(path)
        print(back["labels"], sorted(back))
        test_eq(np.asarray(back["labels"]), pseudo["labels"])
    np.savez(path, **pseudo | {"kept": pseudo["kept"][:1]})
    try: read_pseudo(path)
    except InputError as e: print(str(e).replace(d, "…"))
