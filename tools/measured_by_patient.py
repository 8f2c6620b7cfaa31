"""Scores by patient, in a table that grows: what the scripts of trainings on real CT share."""
import fcntl
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from results import RESULTS

from ctseg.core.atomic import atomic_path
from ctseg.data.slices import SliceSet
from ctseg.metrics.bootstrap import interval, scores_of_sums
from ctseg.metrics.challenge import examined_dice


def dice_by_patient(labels: np.ndarray, slices: SliceSet) -> list[dict]:
    """A row for each patient and class: the mean Dice over the slices where it counts, and how many they are.

    labels: uint8 [N,H,W]. Cells do not count that nobody examined, or that have a class neither drawn nor
    true.
    """
    table = examined_dice(labels, slices)
    rows = []
    for patient in np.unique(slices.groups):
        own = table[slices.groups == patient]
        for name, column in zip(slices.classes.names, own.T):
            counted = column[np.isfinite(column)]
            if not len(counted): continue
            dice = round(float(counted.mean()), 4)
            rows.append({"patient": int(patient), "class": name, "dice": dice, "slices": len(counted)})
    return rows


class Results:
    "A CSV of results: rows are added under a key, also by several processes, and none is measured again."
    def __init__(self, name: str):
        self.path = RESULTS/name
        self.read()

    def read(self) -> None:
        "Take in what the file holds."
        self.table = pd.read_csv(self.path) if self.path.exists() else pd.DataFrame()

    def has(self, key: Mapping) -> bool:
        "Are there rows with these values?"
        return not self.table.empty and len(self.of(key)) > 0

    def add(self, key: Mapping, rows: list[dict]) -> None:
        "Add rows to what the file holds by now, and write it whole."
        new = pd.DataFrame([{**key, **row} for row in rows])
        with open(Path(tempfile.gettempdir())/f"{self.path.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.read()
            self.table = pd.concat([self.table, new], ignore_index=True)
            with atomic_path(self.path) as tmp:
                self.table.to_csv(tmp, index=False)

    def of(self, key: Mapping) -> pd.DataFrame:
        "The rows with these values."
        same = [self.table[name] == value for name, value in key.items()]
        return self.table[np.logical_and.reduce(same)]


def mean_by_class(rows: pd.DataFrame) -> pd.Series:
    "The mean Dice over slices of each class."
    sums = (rows.dice*rows.slices).groupby(rows["class"]).sum()
    return sums/rows.slices.groupby(rows["class"]).sum()


def _sums(rows: pd.DataFrame, patients: list, names: list) -> tuple[np.ndarray, np.ndarray]:
    "Sums of the Dice and numbers of the slices, [S,G,C] each."
    shape = rows.seed.nunique(), len(patients), len(names)
    sums, counts = np.zeros(shape), np.zeros(shape)
    seeds = sorted(rows.seed.unique())
    for row in rows.rename(columns={"class": "organ"}).itertuples():
        cell = seeds.index(row.seed), patients.index(row.patient), names.index(row.organ)
        sums[cell] += row.dice*row.slices
        counts[cell] += row.slices
    return sums, counts


def difference(a: pd.DataFrame, b: pd.DataFrame, reps: int = 2000) -> dict[str, float]:
    "The difference a - b of the mean over classes and seeds, with an interval over patients."
    patients = sorted({*a.patient, *b.patient})
    names = sorted({*a["class"], *b["class"]})
    scores = [scores_of_sums(*_sums(rows, patients, names), reps, 0) for rows in (a, b)]
    apart = scores[0] - scores[1]
    low, high = interval(apart[1:], 0.95)
    return {"first": scores[0][0], "second": scores[1][0], "difference": apart[0], "low": low, "high": high}
