"""Choose the slices of `data_sample`: `python tools/make_sample.py SRC OUT`.

SRC is the real-CT benchmark, which anyone can cut from a clone of `ababier/open-kbp` (MIT licence):

    from ctseg.io.openkbp import import_openkbp
    import_openkbp("open-kbp", "SRC", like="nbs/benchmarks/realct_slices.json")

Of its slices 480 annotated and 720 unlabelled ones go into OUT for training and 60 with their truth for
the test, from as many patients as possible. The same SRC gives the same bytes. Files of OUT with other names, the README
and the licence, stay.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctseg.data.slices import SliceSet
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.core.errors import InputError

COUNTS = {"annotated": 480, "unlabelled": 720, "test": 60}


def in_turns(groups: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The numbers of all slices, int [N]: each patient gives one before any gives a second.

    groups: int [N], the patient of each slice. rank: int [N], which come first within a turn.
    """
    turn = np.empty(len(groups), int)  # 0 for the first slice of its patient, 1 for the second, …
    for patient in np.unique(groups):
        of_patient = np.flatnonzero(groups == patient)
        turn[of_patient[np.argsort(rank[of_patient])]] = np.arange(len(of_patient))
    return np.lexsort((rank, turn))


def spread_over_patients(groups: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Choose `count` slices, each patient giving one before any gives a second.

    `groups` int [N] is the patient of each slice. Returns the numbers of the chosen slices, int [count],
    ascending;
    `InputError` if there are fewer slices than asked for.
    """
    if count > len(groups):
        raise InputError(f"{len(groups)} slices where {count} are to be chosen; give a larger SRC")
    rank = np.random.default_rng(seed).permutation(len(groups))
    return np.sort(in_turns(groups, rank)[:count])


def renumbered(slices: SliceSet) -> SliceSet:
    "The same slices, called 0.png, 1.png, … in their order."
    return replace(slices, names=tuple(f"{i}.png" for i in range(len(slices))))


def choose_slices(train: SliceSet, test: SliceSet, counts: dict[str, int]) -> tuple[SliceSet, SliceSet]:
    "The training slices of the sample, annotated ones first, and its test slices; `counts` as in `COUNTS`."
    annotated, unlabelled = np.flatnonzero(train.labelled), np.flatnonzero(~train.labelled)
    annotated = annotated[spread_over_patients(train.groups[annotated], counts["annotated"])]
    unlabelled = unlabelled[spread_over_patients(train.groups[unlabelled], counts["unlabelled"])]
    chosen = np.concatenate([annotated, unlabelled])
    judged = spread_over_patients(test.groups, counts["test"])
    return renumbered(train[chosen]), renumbered(test[judged])


def make_sample(src: Path, out: Path, counts: dict[str, int] = COUNTS):
    """Write the sample of the challenge folder `src` into `out`; `InputError` if a patient would be on both
    sides."""
    train, test = choose_slices(read_challenge(src), read_challenge(src, "test"), counts)
    if both := set(train.groups.tolist()) & set(test.groups.tolist()):
        raise InputError(
            f"{src}: patient {min(both)} is among the training and the test slices; keep patients apart"
        )
    write_challenge(train, out, "train", compress=True)
    write_challenge(test, out, "test", compress=True)


def main():
    "The command."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", type=Path, metavar="SRC", help="the challenge folder to choose from")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    args = parser.parse_args()
    try:
        make_sample(args.src, args.out)
    except InputError as e:
        parser.exit(2, f"make_sample: {e}\n")


if __name__ == "__main__":
    main()
