"""What the rows of a table in bench_tables.py learn from, and the annotated slices they leave out."""
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from make_sample import in_turns
from suggesting import revealed

from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import read_masks
from ctseg.data.slices import SliceSet
from ctseg.data.splits import select_labelled


def fully_annotated(train: SliceSet, data: Path) -> SliceSet:
    "The same training slices with every contour, out of the `y_train_full.csv` that a phantom can be written with."
    _, masks = read_masks(data/"y_train_full.csv", train.names)
    return replace(train, masks=masks, known=np.ones_like(train.known))


def annotated_in_turns(train: SliceSet, count: int, seed: int) -> SliceSet:
    """The training slices with the annotation of `count` of them: one of each patient that has any, drawn
    by the seed, then a second one of each, and so on."""
    annotated = np.flatnonzero(train.labelled)
    rank = np.argsort(np.random.default_rng(seed).permutation(len(annotated)))
    chosen = annotated[in_turns(train.groups[annotated], rank)[:count]]
    return revealed(train, np.isin(np.arange(len(train)), chosen))


def training_slices(name: str, seed: int, data: Path) -> SliceSet:
    "What a row of a table learns from: the folder's slices, with more contours or fewer if its name says so."
    train = read_challenge(data)
    if name.startswith("full-"): return fully_annotated(train, data)
    if count := re.match(r"spread(\d+)-", name):
        return annotated_in_turns(train, int(count[1]), seed)
    return train


def left_out(train: SliceSet, labelled: int, seed: int) -> np.ndarray:
    """Positions of the annotated slices of patients whose annotation the setting `labelled` leaves out, int `[n]`.

    Choices are made on these, so that the test slices only judge.
    """
    kept = select_labelled(train, labelled, seed).labelled
    return np.flatnonzero(train.labelled & ~np.isin(train.groups, train.groups[kept]))
