"""One network from three hospitals, measured: `python tools/hospitals.py --data DIR` (real CT of seven
organs, test with truth).

The annotated training slices are dealt to three hospitals by patient. Each hospital keeps the contours
of other organs, under numbers and names of its own; one has outlined the two parotids as one. `ctseg
merge` makes one folder of the three. Networks are then trained, all for as many steps: each hospital's
own, the merged one, the same slices with ordinary partial labels (no union), and the merge read as
background; and the merged one once more for as many epochs as a hospital's own.
`nbs/benchmarks/results/hospitals.csv` holds the Dice of each class on the test slices, by patient. A row
that is there is not measured again.
"""
import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.slices import SliceSet
from ctseg.io.merge import merge
from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from measured_by_patient import RESULTS, Results, dice_by_patient, mean_by_class

HOSPITALS = {  # each one's names in the order of its numbers, and what they are of the seven
    "north": {"Brainstem": ["brainstem"], "SpinalCord": ["spinal_cord"], "Bone_Mandible": ["mandible"]},
    "south": {"Parotids": ["parotid_left", "parotid_right"], "esophagus": ["esophagus"],
              "spinal cord": ["spinal_cord"]},
    "west": {"Larynx": ["larynx"], "Parotid_L": ["parotid_left"], "Parotid_R": ["parotid_right"],
             "brainstem": ["brainstem"]},
}
SETTINGS = dict(batch_size=8, lr=2e-3, ema=0.95, precision="fp32")  # a short training on a processor
UNION = {"Parotids": ["Parotid_L", "Parotid_R"]}


def dealt(train: SliceSet, seed: int = 0) -> dict[str, SliceSet]:
    "The annotated slices of each hospital, by patient, still with all that was examined."
    annotated = train[train.labelled]
    patients = np.unique(annotated.groups)
    order = np.random.default_rng(seed).permutation(len(patients))
    owner = dict(zip(patients[order].tolist(), np.arange(len(patients)) % len(HOSPITALS)))
    of_slice = np.array([owner[group] for group in annotated.groups.tolist()])
    return {name: annotated[of_slice == i] for i, name in enumerate(HOSPITALS)}


def in_its_own_words(slices: SliceSet, names: dict[str, list[str]]) -> SliceSet:
    """What a hospital keeps of the contours, in its own numbers. A union was examined where all of its
    members were."""
    table, known = np.zeros(256, np.uint8), []
    for number, members in enumerate(names.values(), 1):
        ids = [slices.classes.id(member) for member in members]
        table[ids] = number
        known.append(slices.known[:, [i - 1 for i in ids]].all(1))
    known = np.stack(known, 1)
    masks = table[slices.masks]
    shown = np.concatenate([np.ones((len(slices), 1), bool), known], 1)
    masks = np.where(
        np.take_along_axis(shown, masks.reshape(len(masks), -1), 1).reshape(masks.shape), masks, 0
    )
    file_names = [f"{i}.png" for i in range(len(slices))]
    return SliceSet(
        slices.images, masks.astype(np.uint8), known, file_names, slices.groups, ClassMap.from_names(names)
    )


def ordinary(of_hospitals: dict[str, SliceSet], merged: SliceSet) -> SliceSet:
    "The merged slices as if left and right had been outlined apart everywhere."
    masks, known = [], []
    for name, slices in of_hospitals.items():
        members = {member for those in HOSPITALS[name].values() for member in those}
        kept = np.array([class_name in members for class_name in slices.classes.names])
        if name == "south":  # both or neither, as there
            both = slices.known[
                :, [slices.classes.id(f"parotid_{side}") - 1 for side in ("left", "right")]
            ].all(1)
            pair = np.char.startswith(np.array(slices.classes.names), "parotid")
            kept = kept & (~pair | both[:, None])
        known.append(slices.known & kept)
        shown = np.concatenate([np.ones((len(slices), 1), bool), known[-1]], 1)
        flat = slices.masks.reshape(len(slices), -1)
        masks.append(np.where(np.take_along_axis(shown, flat, 1), flat, 0).reshape(slices.masks.shape))
    classes = next(iter(of_hospitals.values())).classes
    return replace(
        merged, masks=np.concatenate(masks).astype(np.uint8), known=np.concatenate(known), classes=classes
    )


def as_background(merged: SliceSet) -> SliceSet:
    """The merged masks as a loss without unknowns reads them: what has no pixel is absent, and the union is
    one more class."""
    plain = ClassMap(merged.classes.names, merged.classes.pairs)
    return replace(merged, known=np.repeat(merged.labelled[:, None], len(plain), 1), classes=plain)


@dataclass
class Arm:
    "What one network learns from."
    name: str
    slices: SliceSet
    meanings: dict[str, list[str]]  # the names of its classes → organs of the test


def make_arms(data: Path, work: Path) -> list[Arm]:
    "The six trainings."
    of_hospitals = dealt(read_challenge(data))
    arms = []
    for name, slices in of_hospitals.items():
        own = in_its_own_words(slices, HOSPITALS[name])
        write_challenge(own, work/name)
        arms.append(Arm(name, own, HOSPITALS[name]))
    facts = merge([work/name for name in HOSPITALS], work/"merged", unions=UNION)
    print(facts["table"].to_string(), flush=True)
    merged = read_challenge(work/"merged")
    meanings = {}
    for own in HOSPITALS.values():
        for name, members in own.items():
            if name in merged.classes.names: meanings[name] = members
    apart = ordinary(of_hospitals, merged)
    arms.append(Arm("merged", merged, meanings))
    arms.append(Arm("merged-long", merged, meanings))
    arms.append(Arm("ordinary", apart, {name: [name] for name in apart.classes.names}))
    arms.append(Arm("background", as_background(merged), meanings))
    return arms[3:] + arms[:3]


def parotids_as_one(labels: np.ndarray, test: SliceSet) -> list[dict]:
    "Rows of `dice_by_patient` for both parotids together; labels: bool [N,H,W]."
    pair = [test.classes.id(f"parotid_{side}") for side in ("left", "right")]
    both = np.isin(test.masks, pair).astype(np.uint8)
    known = test.known[:, [id - 1 for id in pair]].all(1, keepdims=True)
    one = ClassMap.from_names(["parotids"])
    return dice_by_patient(labels.astype(np.uint8), replace(test, masks=both, known=known, classes=one))


def scores(folder: Path, arm: Arm, test: SliceSet) -> list[dict]:
    "Rows of `dice_by_patient` for each class that a network has, and for the two parotids together."
    labels = load_predictor(folder, "cpu").predict(test.images)
    table, parotids = np.zeros(256, np.uint8), np.zeros(256, bool)
    for name, members in arm.meanings.items():
        number = arm.slices.classes.id(name)
        if len(members) == 1: table[number] = test.classes.id(members[0])
        parotids[number] = members[0].startswith("parotid")
    drawn = [test.classes.name(id) for id in np.unique(table[table > 0]).tolist()]
    rows = [row for row in dice_by_patient(table[labels], test) if row["class"] in drawn]
    return rows + parotids_as_one(parotids[labels], test) if parotids.any() else rows


def organ_shares(arm: Arm, batch: int, draws: int = 4000) -> list[dict]:
    """What each class of an arm weighs: on how many slices it is, in which share of batches, and its part
    of the Dice term, which is a mean over the classes that a batch shows."""
    present = arm.slices.present & arm.slices.known
    rng = np.random.default_rng(0)
    shown = present[rng.integers(len(present), size=(draws, batch))].any(1)  # [draws,C]
    part = shown/np.maximum(shown.sum(1, keepdims=True), 1)
    rows = []
    for c, name in enumerate(arm.slices.classes.names):
        facts = {"network": arm.name, "class": name, "slices": int(present[:, c].sum())}
        share, weight = shown[:, c].mean(), part[:, c].mean()
        rows.append(facts | {"batches": round(float(share), 3), "weight": round(float(weight), 3)})
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--runs", type=Path, default=Path("runs/hospitals"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument(
        "--epochs",
        type=int,
        default=12,
        help="of the merged folder; a hospital's own network takes three times as many",
    )
    p.add_argument("--width", type=int, default=8)
    p.add_argument("--shares", action="store_true", help="only write what each class weighs in a step")
    p.add_argument("--only", nargs="+", default=[], help="names of networks")
    a = p.parse_args()
    test, results = read_challenge(a.data, "test"), Results("hospitals.csv")
    with tempfile.TemporaryDirectory() as work:
        arms = [arm for arm in make_arms(a.data, Path(work)) if not a.only or arm.name in a.only]
    if a.shares:
        some = [arm for arm in arms if arm.name in ("merged", *HOSPITALS)]
        table = [row for arm in some for row in organ_shares(arm, SETTINGS["batch_size"])]
        pd.DataFrame(table).to_csv(RESULTS/"hospitals_shares.csv", index=False)
        return
    for seed in a.seeds:
        for arm in arms:
            key = {"network": arm.name, "seed": seed}
            if results.has(key): continue
            epochs = a.epochs*(3 if arm.name in (*HOSPITALS, "merged-long") else 1)
            recipe = get_recipe("marginal-log").change(width=a.width, epochs=epochs, fold=-1, **SETTINGS)
            out = a.runs/f"{arm.name}-s{seed}"
            run = fit(arm.slices, recipe, out, seed, resume=True, device="cpu", progress=False)
            results.add(key, scores(run.folder, arm, test))
            print(key, mean_by_class(results.of(key)).round(3).to_dict(), flush=True)


if __name__ == "__main__": main()
