# %% [markdown]
# # Phantom challenge
#
# > From patients to slices, and from slices to a whole challenge folder: a pure function of one seed.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.challenge

# %%
#| export
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.schema import LONGEST, check_whole
from ctseg.data.challenge import write_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.slices import SliceSet
from ctseg.io.outputs import new_folder
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.body import Body
from ctseg.phantom.cut import view
from ctseg.phantom.outline import phantom_table
from ctseg.phantom.painting import paint_slice
from ctseg.phantom.scanner import random_window, scanner_noise, to_grey

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import (
    class_legend,
    image_grid,
    overlay,
    show_image,
    show_states,
    state_legend,
    states_of,
)
from ctseg.data.challenge import read_challenge
from ctseg.data.splits import near_duplicates

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})

# %% [markdown]
# To try `ctseg`, to test it or to teach with it, you need CT slices whose every pixel is labelled. The images of the challenge may not be passed on, nor may those of a
# hospital. The phantom gives you as many slices as you want. One command writes a whole folder as a participant of the challenge would download it:
#
# ```sh
# ctseg phantom my_phantom --labelled 80 --unlabelled 120 --test 50 --size 128
# ```
#
# The phantom is meant to be as hard as the real thing in the ways that matter here: left against right, tiny organs, duodenum and pancreas and bowel of the same grey,
# contrast that comes and goes, display windows that differ, annotators who looked at half of the classes only. It is **not** anatomy to learn from, and a score on it says
# nothing about patients.
#
# ## What is scanned
#
# A hospital scans a part of the body for a reason. The table `STUDIES` holds the usual kinds: how frequent a study is, which heights it covers, and how wide its field of view
# is. A patient gives one to three separate cuts, some of them coronal or sagittal. A few cuts have a neighbour some millimetres away. Such near-duplicates make random folds
# dishonest, as they do in the challenge. We first draw the *plan* of all cuts, which costs nothing; only then do we render.

# %%
#| export
STUDIES = phantom_table("studies")  # share, heights and fields of view in mm
KINDS = ("axial", "coronal", "sagittal")
KIND_SHARES = (.81, .125, .065)
NORMALS = {"axial": np.array([0, 0, 1.]), "coronal": np.array([0, 1., 0]), "sagittal": np.array([1., 0, 0])}

class Shot(NamedTuple):
    "One planned slice."
    kind: str          # axial, coronal or sagittal
    at: np.ndarray     # [3], mm in the model body
    fov: float         # mm, in a patient of the model's size
    tilt: np.ndarray   # two angles in degrees
    ends: tuple        # lowest and highest z that was scanned, mm
    window: int        # seed of the display window
    noise: int         # seed of the noise


# %%
#| export
def _random_place(rng: np.random.Generator, kind: str, low: float, high: float) -> tuple:
    "A point (x, y, z) for a cut through what was scanned between the heights `low` and `high`."
    middle = (low + high)/2
    places = {  # all are drawn, so that later draws do not depend on the kind
        "axial": (rng.normal(0, 8), rng.normal(6, 6), rng.uniform(low, high)),
        "coronal": (rng.normal(0, 8), rng.normal(10, 36), middle),
        "sagittal": (rng.normal(0, 46), rng.normal(6, 6), middle),
    }
    return places[kind]


# %%
pd.DataFrame(STUDIES).set_index("study")


# %%
#| export
def _plan_cut(rng: np.random.Generator, study: dict) -> list[Shot]:
    "One cut, in some cases with one or two neighbours."
    low, high = study["z_from"], study["z_to"]
    kind = str(rng.choice(KINDS, p=KIND_SHARES))
    fov = rng.uniform(study["fov_from"], study["fov_to"])
    place = _random_place(rng, kind, low, high)
    if kind != "axial":
        fov = max(fov, rng.uniform(.7, 1.05)*(high - low))
    spread = 2.5 if rng.random() < .92 else 12  # degrees: some patients lie askew
    tilt = rng.normal(0, spread, 2)
    across = NORMALS[kind]*rng.choice([-1, 1])
    window = int(rng.integers(2**31))  # neighbours share it
    ends = (low - 8, high + 8)
    shots = []
    for k in range(rng.choice([1, 2, 3], p=[.91, .07, .02])):
        at = np.array(place) + across*k*rng.uniform(1.5, 5)
        noise = int(rng.integers(2**31))
        shots.append(Shot(kind, at, fov, tilt, ends, window, noise))
    return shots


# %%
#| export
def plan_patient(seed: int | list[int], number: int) -> list[Shot]:
    "Which slices are taken of patient `number` of the world `seed`."
    rng = np.random.default_rng([*np.atleast_1d(seed), number, 1])
    shares = [study["share"] for study in STUDIES]
    study = STUDIES[rng.choice(len(STUDIES), p=shares)]
    shots = []
    for _ in range(rng.choice([1, 2, 3], p=[.5, .3, .2])):
        shots += _plan_cut(rng, study)
    return shots


# %%
for number in range(4):
    print(number, [f"{shot.kind} through {shot.at.round().astype(int)}" for shot in plan_patient(5, number)])


# %% [markdown]
# ## Slices
#
# Each planned cut becomes an image and a mask: it is rendered, gets the noise of a scanner, and is stored in 8 bits after a display window.

# %%
#| export
def _take(body: Body, shot: Shot, size: int) -> tuple[np.ndarray, np.ndarray]:
    "Image and mask, uint8 [size, size], of one planned slice."
    fov = shot.fov*body.patient.traits.scale[0]
    cut = view(body, shot.kind, shot.at, fov, size, shot.tilt)
    hu, label = paint_slice(cut)
    hu = scanner_noise(hu, np.random.default_rng(shot.noise))
    if shot.kind != "axial":
        z = cut.straight[2]
        low, high = shot.ends
        not_scanned = (z < low) | (z > high)
        hu[not_scanned] = -1024
        label[not_scanned] = 0
    level, width = random_window(hu, np.random.default_rng(shot.window))
    return to_grey(hu, level, width), label


# %%
#| export
def patient_slices(seed: int | list[int], number: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    "All slices of patient `number` of the world `seed`: pairs of image and mask, uint8 [size, size]."
    body = whole_body([*np.atleast_1d(seed), number, 0])
    return [_take(body, shot, size) for shot in plan_patient(seed, number)]


# %%
(image, mask), *others = patient_slices(seed=5, number=2, size=128)
print(f"{1 + len(others)} slices, {len(np.unique(mask)) - 1} structures on the first")
test_eq(image.shape, mask.shape)


# %% [markdown]
# `phantom_slices` takes patients one after the other until there are enough slices, and shuffles them. Every class is known on every slice; `groups` holds the patient's number.
# With `workers` it uses several processes; the result is the same.

# %%
#| export
def _all_patients(seed, first: int, size: int, workers: int) -> Iterator[tuple[int, list]]:
    "(number, slices) of patients `first`, `first + 1`, … without end, computed by `workers` processes."
    number = first
    if workers <= 1:
        while True:
            yield number, patient_slices(seed, number, size)
            number += 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            batch = range(number, number + 8*workers)
            results = pool.map(patient_slices, repeat(seed), batch, repeat(size), chunksize=2)
            yield from zip(batch, results)
            number = batch.stop


# %%
#| export
def phantom_slices(
    n: int,  # number of slices
    size: int = 256,  # rows and columns
    seed: int | list[int] = 0,  # the world that the patients live in
    first: int = 0,  # number of the first patient
    workers: int = 1,  # processes; the result does not depend on how many
) -> SliceSet:  # fully known; `groups` are the patients' numbers
    """`n` slices [size, size] of phantom patients `first`, `first + 1`, …, shuffled, with full truth.

    Raises `InputError` for less than 1 slice of 16x16.
    """
    check_whole("slices", n)
    check_whole("size", size, 16, LONGEST)
    images, masks, groups = [], [], []
    for number, slices in _all_patients(seed, first, size, workers):
        for image, mask in slices:
            images.append(image)
            masks.append(mask)
            groups.append(number)
        if len(images) >= n: break
    rng = np.random.default_rng([*np.atleast_1d(seed), first, 2])
    order = rng.permutation(n)
    return SliceSet(
        images=np.stack(images[:n])[order],
        masks=np.stack(masks[:n])[order],
        known=np.ones((n, len(RAIDIUM54)), bool),
        names=tuple(f"{i}.png" for i in range(n)),
        groups=np.array(groups[:n], np.int64)[order],
        classes=RAIDIUM54,
    )


# %%
#| fig-alt: "Twenty-four phantom slices of different heights, directions and windows"
slices = phantom_slices(24, size=128, seed=5)
print(slices)
fig, axes = image_grid(3, 8, 1)
for ax, image in zip(axes.flat, slices.images): show_image(ax, image)


# %% [markdown]
# ## Half of the truth
#
# `hide_labels` simulates the annotators. On each slice 27 of the 54 classes are *examined*: for these we know whether they are present or absent. The other classes are erased
# and become unknown. On a few slices none of the examined classes happens to be there. Such a slice looks unlabelled, but it is not: it carries 27 certain absences.

# %%
#| export
def _examined_cells(present: np.ndarray, examined: int, empty: float, rng: np.random.Generator) -> np.ndarray:
    "Which cells are examined, bool [N, C]: `examined` a row; on a share `empty` of rows only absent ones."
    n, count = present.shape
    rank = rng.random((n, count))
    can_be_empty = present.sum(1) <= count - examined
    wanted = min(int(round(empty*n)), int(can_be_empty.sum()))
    queue = np.argsort(rng.random(n) + ~can_be_empty)
    blank = queue[:wanted]
    rank[blank] += 2*present[blank]  # what is present comes last
    return rank.argsort(1).argsort(1) < examined


# %%
truth = np.array([[True, True, False, False]]*6)
print(_examined_cells(truth, examined=2, empty=.5, rng=np.random.default_rng(0)).astype(int))


# %%
#| export
def hide_labels(
    slices: SliceSet,  # with full truth
    examined: int = 27,  # classes examined on each slice
    empty: float = .03,  # share of slices on which only absent classes are examined, besides those by chance
    seed: int | list[int] = 0,
) -> SliceSet:  # `known` has `examined` true cells a row; masks hold examined classes only
    """What partial annotation shows of the truth: a random choice of classes on each slice, nothing else.

    Raises `InputError` unless 0 < examined <= C.
    """
    count = len(slices.classes)
    if not 0 < examined <= count:
        raise InputError(f"{examined} classes examined on each slice; expected 1 to {count}")
    rng = np.random.default_rng([*np.atleast_1d(seed), 3])
    known = _examined_cells(slices.present, examined, empty, rng)
    ids = np.arange(count + 1, dtype=np.uint8)
    masks = []
    for mask, row in zip(slices.masks, known):
        kept = ids*np.r_[True, row]  # id -> id, or 0 where it was not examined
        masks.append(kept[mask])
    return replace(slices, masks=np.stack(masks), known=known)


# %%
#| fig-alt: "A phantom slice, its full truth, and the half of it that annotators outlined"
partial = hide_labels(slices)
i = int(slices.present.sum(1).argmax())
fig, axes = image_grid(1, 3, 2)
show_image(axes[0, 0], slices.images[i], "image")
show_image(
    axes[0, 1],
    overlay(slices.images[i], slices.masks[i], slices.classes),
    f"truth: {slices.present[i].sum()} structures",
)
show_image(
    axes[0, 2],
    overlay(slices.images[i], partial.masks[i], slices.classes),
    f"as annotated: {partial.present[i].sum()} structures",
)
class_legend(fig, slices.classes, slices.masks[i])
test_eq(np.unique(partial.known.sum(1)), [27])
assert not (partial.present & ~partial.known).any()                           # what is drawn was examined
test_eq(partial.masks[partial.masks > 0], slices.masks[partial.masks > 0])    # and is true

# %%
#| fig-alt: "States of all cells: every one known in the truth, half of them unknown as annotated"
fig, axes = plt.subplots(1, 2, figsize=(7, 2.2), layout="constrained")
show_states(axes[0], states_of(slices.present, slices.known), "truth: every cell known")
show_states(axes[1], states_of(partial.present, partial.known), "as annotated: half of the cells")
for ax in axes: ax.set(xlabel="class", ylabel="slice")
state_legend(fig)


# %% [markdown]
# ## A challenge folder
#
# `make_phantom` writes what a participant would download: partly labelled and unlabelled training slices, and test slices with their truth. No patient is in two of the three.
# With `truth=True` there is also `y_train_full.csv`, the whole truth of all training slices. It tells how much of the gap to full annotation a method closes.

# %%
#| export
def _check_request(folder: Path, counts: tuple[int, int, int], seed: int):
    new_folder(folder)
    check_whole("seed", seed, 0, 2**63 - 1)
    for name, count in zip(("labelled", "unlabelled", "test"), counts):
        check_whole(f"{name} slices", count, 0, 10**6)
    if not sum(counts):
        nothing = "a phantom of nothing: 0 labelled, 0 unlabelled and 0 test slices"
        raise InputError(f"{nothing}; ask for at least 1")


# %%
#| export
def _split_slices(counts: tuple[int, int, int], size: int, seed: int, workers: int) -> list[SliceSet | None]:
    "Slices of different patients for each count; None where it is 0."
    sets, first = [], 0
    for n in counts:
        sets.append(phantom_slices(n, size, seed, first, workers) if n else None)
        if n: first = int(sets[-1].groups.max()) + 1
    return sets


# %%
few = _split_slices((2, 0, 1), size=32, seed=0, workers=1)
print(few)
assert few[1] is None and not set(few[0].groups) & set(few[2].groups)


# %%
#| export
def _joined(sets: list[SliceSet | None]) -> SliceSet | None:
    "The slices of one or two sets, numbered through; None without any."
    sets = [slices for slices in sets if slices]
    if len(sets) < 2: return sets[0] if sets else None
    both = sets[0].concat(sets[1])
    return replace(both, names=tuple(f"{i}.png" for i in range(len(both))))

def _unlabelled(slices: SliceSet | None) -> SliceSet | None:
    if slices is None: return None
    return replace(slices, masks=np.zeros_like(slices.masks), known=np.zeros_like(slices.known))


# %%
both = _joined([partial[:2], _unlabelled(slices[:3])])
print(both)
test_eq(both.labelled, [True]*2 + [False]*3)


# %%
#| export
def make_phantom(
    folder,  # a new or empty folder
    labelled: int = 800,  # training slices on which some of the classes were examined
    unlabelled: int = 1200,  # training slices without annotation
    test: int = 500,  # test slices, with truth
    size: int = 256,  # rows and columns
    seed: int = 0,  # the folder is a pure function of it (and of the sizes)
    *,
    truth: bool = False,  # also write y_train_full.csv
    workers: int = 1,  # processes; the result does not depend on how many
    **annotation,  # `examined` and `empty` of `hide_labels`
) -> None:
    """Write a whole challenge folder of phantom slices, as `read_challenge` reads it.

    On each labelled slice `examined=27` classes are examined; on a share `empty=0.03` only absent ones.
    Raises `InputError` for a request that makes no sense, and leaves nothing behind then.
    """
    folder = Path(folder)
    counts = (labelled, unlabelled, test)
    _check_request(folder, counts, seed)
    examined, rest, last = _split_slices(counts, size, seed, workers)
    annotated = hide_labels(examined, seed=seed, **annotation) if examined else None
    train = _joined([annotated, _unlabelled(rest)])
    full = _joined([examined, rest])
    with atomic_path(folder, new=True) as tmp:
        tmp.mkdir()
        if train: write_challenge(train, tmp, "train")
        if last: write_challenge(last, tmp, "test")
        if truth and full:
            write_masks(full.masks, full.names, tmp/"y_train_full.csv")


# %%
with tempfile.TemporaryDirectory() as d:
    make_phantom(Path(d)/"world", labelled=3, unlabelled=2, test=2, size=64, truth=True)
    for p in sorted(Path(d).rglob("*")):
        if p.is_file(): print(p.relative_to(d))
    train, last = read_challenge(Path(d)/"world"), read_challenge(Path(d)/"world", "test")
    test_eq(train.labelled.tolist(), [True]*3 + [False]*2)
    test_eq(len(set(train.groups) & set(last.groups)), 0)
    test_fail(lambda: make_phantom(Path(d)/"world", 1, 0, 0), contains="not empty")

# %% [markdown]
# ## How near to the challenge?
#
# The table sets the challenge's published statistics beside those of a small phantom world. They differ most in near-duplicates, which are rarer here.

# %%
world = phantom_slices(100, size=64, seed=11)
shown = hide_labels(world)
plans = [shot for number in range(world.groups.max() + 1) for shot in plan_patient(11, number)]
duplicates = np.bincount(near_duplicates(world.images))
facts = {"structures drawn on an annotated slice": (5.98, shown.present.sum(1).mean()),
         "structures on a slice": (12, world.present.sum(1).mean()),
         "share of slices annotated but empty": (41/800, (~shown.present.any(1)).mean()),
         "share not axial": (.19, np.mean([shot.kind != "axial" for shot in plans])),
         "share in groups of near-duplicates": (369/2000, duplicates[duplicates > 1].sum()/len(world)),
         "share of pixels drawn": (.12, (shown.masks > 0).mean()),
         "share of pixels of some structure": (.255, (world.masks > 0).mean())}
pd.DataFrame(facts, index=["challenge", "phantom"]).T.round(3)
