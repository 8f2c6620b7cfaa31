"""A class is added to a trained network, measured: `python tools/adding.py --data DIR` (real CT of seven
organs, test with truth).

The patients of the annotated training slices are divided: a fifth is held out, one half of the rest is
the old folder, which knows five organs, the other half the new folder, in which only the two others were
examined. Trained are the old network; from it the new one, plain (`--init`) and taught by the old one
(`--init --teacher`); and one network on both folders at once, for as many steps as the two trainings
together. `nbs/benchmarks/results/adding_a_class.csv` holds the Dice of each class by patient, on the
held-out and on the test slices. A row that is there is not trained again.
"""
import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from measured_by_patient import Results, dice_by_patient, mean_by_class

NEW = {"parotids": ("parotid_right", "parotid_left"), "bone": ("larynx", "mandible")}
SETTINGS = dict(batch_size=8, lr=2e-3, ema=0.95, precision="bf16", fold=-1)
OLD_STEPS, NEW_STEPS = 1000, 1600


@dataclass(frozen=True)
class Arm:
    "How one network is trained."
    data: str  # old, new or both
    steps: int
    init: bool = False  # starts from the old network
    teacher: bool = False  # is taught by it


ARMS = {
    "old": Arm("old", OLD_STEPS),
    "tuned": Arm("new", NEW_STEPS, init=True),
    "taught": Arm("new", NEW_STEPS, init=True, teacher=True),
    "at once": Arm("both", OLD_STEPS + NEW_STEPS),
}


def only(slices: SliceSet, names: tuple[str, ...]) -> SliceSet:
    "The slices as if these classes had been looked for and no others."
    on = np.isin(slices.classes.names, names)
    shown = np.flatnonzero(on) + 1
    masks = np.where(np.isin(slices.masks, shown), slices.masks, 0).astype(np.uint8)
    return replace(slices, masks=masks, known=slices.known & on)


def of_classes(slices: SliceSet, names: tuple[str, ...]) -> SliceSet:
    "The slices in a folder that has never heard of other classes."
    columns = [slices.classes.names.index(name) for name in names]
    ids = np.zeros(len(slices.classes) + 1, np.uint8)
    ids[np.array(columns) + 1] = np.arange(len(names)) + 1
    known, classes = slices.known[:, columns], ClassMap.from_names(list(names))
    return SliceSet(slices.images, ids[slices.masks], known, slices.names, slices.groups, classes)


def dealt(train: SliceSet, new: tuple[str, ...], seed: int) -> dict[str, SliceSet]:
    "The held-out slices with all that was examined, and those of the two folders."
    annotated = train[train.labelled]
    patients = np.unique(annotated.groups)
    order = np.random.default_rng(seed).permutation(patients)
    held, rest = order[:len(order)//5], order[len(order)//5:]
    former, latter = rest[:len(rest)//2], rest[len(rest)//2:]
    part = {name: annotated[np.isin(annotated.groups, those)]
            for name, those in (("held-out", held), ("old", former), ("new", latter))}
    known_before = tuple(name for name in train.classes.names if name not in new)
    part["old"] = only(part["old"], known_before)
    part["new"] = only(part["new"], new)
    for name in ("old", "new"): part[name] = part[name][part[name].labelled]
    both = part["old"].concat(part["new"])
    return part | {"old": of_classes(part["old"], known_before), "both": both}


def recipe_of(arm: Arm, slices: int, width: int):
    "The recipe of an arm: as many epochs as make its steps."
    per_epoch = -(-slices//SETTINGS["batch_size"])
    return get_recipe("marginal-log").change(width=width, epochs=round(arm.steps/per_epoch), **SETTINGS)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--runs", type=Path, default=Path("runs/adding"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--pair", nargs="+", default=["parotids"], choices=NEW, help="which two organs are new")
    p.add_argument("--width", type=int, default=8)
    p.add_argument("--only", nargs="+", default=list(ARMS), choices=ARMS)
    a = p.parse_args()
    train, test = read_challenge(a.data), read_challenge(a.data, "test")
    results = Results("adding_a_class.csv")
    for pair in a.pair:
        for seed in a.seeds:
            part = dealt(train, NEW[pair], seed)
            before = a.runs/f"{pair}-old-s{seed}"
            for name in a.only:
                key = {"new": pair, "network": name, "seed": seed}
                if results.has(key): continue
                arm, slices = ARMS[name], part[ARMS[name].data]
                earlier = {"init": before if arm.init else "", "teacher": before if arm.teacher else ""}
                out = a.runs/f"{pair}-{name.replace(' ', '_')}-s{seed}"
                recipe = recipe_of(arm, len(slices), a.width)
                run = fit(slices, recipe, out, seed, resume=True, device="cpu", progress=False, **earlier)
                predictor, rows = load_predictor(run.folder, "cpu"), []
                for split, scored in (("held-out", part["held-out"]), ("test", test)):
                    ids = [0, *(scored.classes.names.index(name) + 1 for name in predictor.classes.names)]
                    masks = np.array(ids, np.uint8)[predictor.predict(scored.images)]
                    of_patients = dice_by_patient(masks, scored)
                    rows += [{"split": split, **row} for row in of_patients]
                results.add(key, rows)
                for split, of_split in results.of(key).groupby("split"):
                    print(key, split, mean_by_class(of_split).round(3).to_dict(), flush=True)


if __name__ == "__main__": main()
