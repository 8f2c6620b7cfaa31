"A small challenge folder, what can be done to its files, and how a mistake must be told."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from skimage.io import imsave

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet

N, SIZE = 12, 16
CSV, JSON, IMG = "y_train.csv", "annotated_labels.json", "train-images/4.png"
CLASSES = ClassMap.from_names(["liver", "spleen", "kidney_left", "kidney_right"])
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def random_slices(n=N, size=SIZE, seed=0, full=False) -> SliceSet:
    "Random slices; the last third unlabelled, and liver (1) never examined on image 0, unless `full`."
    rng = np.random.default_rng(seed)
    known = np.ones((n, 4), bool)
    if not full: known[2*n//3:], known[0, 0] = False, False
    masks = rng.integers(0, 5, (n, size, size), np.uint8)
    masks *= np.concatenate([np.ones((n, 1), bool), known], 1)[np.arange(n)[:, None, None], masks]
    return SliceSet(
        rng.integers(0, 256, (n, size, size), np.uint8),
        masks,
        known,
        groups=np.arange(n)//2,
        classes=CLASSES,
    )


def tree(folder) -> dict:
    "Everything in a folder, by relative path."
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


def told(call, *parts):
    "`call` raises an InputError of one line with all `parts` in it."
    with pytest.raises(InputError) as e: call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 400
    for part in parts: assert part in text, f"{part!r} is not in: {text}"


def edit(path, *pairs):
    "Replace text in a file, once each; the old text must be there."
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def row(k, values) -> str:
    "The line of pixel `k`, with the newlines around it."
    return f"\nPixel {k}," + ",".join(map(str, values)) + "\n"


def values(k) -> list[int]:
    "Pixel `k` of every mask of `random_slices()`."
    return random_slices().masks.reshape(N, -1)[:, k].tolist()


# What follows damages the folder `d` of the fixture `data`, or makes a function that does.

def set_row(k, new): return lambda d: edit(d/CSV, (row(k, values(k)), new))


def set_value(k, n, v):
    line = [*map(str, values(k))]
    line[n] = v
    return set_row(k, row(k, line))


def set_json(name, change):
    def f(d):
        path = d/name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return f


def put(items, i, v): return items[:i] + [v] + items[i + 1:]
def save(name, image): return lambda d: imsave(d/"train-images"/name, image, check_contrast=False)
def reorder_columns(d, order): pd.read_csv(d/CSV, index_col=0).iloc[:, order].to_csv(d/CSV)
def zipped(d): return d/(CSV + ".gz")
def random_image(*shape, top=256, dtype=np.uint8):
    return np.random.default_rng(5).integers(0, top, shape).astype(dtype)
