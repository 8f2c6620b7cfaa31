"""A small comparison of nnU-Net with and without partial labels, on volumes made of the phantom.

    python tools/nnunet_trial.py make RAW            RAW/Dataset501…503_phantom, RAW/test, RAW/trainers
    nnUNetv2_plan_and_preprocess -d 501 502 503 -c 2d
    python tools/nnunet_trial.py plans PREPROCESSED  nnUNetPlansTiny.json beside each plan: a narrow network
    nnUNet_extTrainer=RAW/trainers nnUNetv2_train 501 2d all -tr nnUNetTrainerPartialShort -p nnUNetPlansTiny
    nnUNetv2_predict …                               RAW/test/imagesTs, into a folder
    python tools/nnunet_trial.py score RAW/test/labelsTs PREDICTED

`nbs/benchmarks/nnunet.ipynb` says what came out.
"""
import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import render
from ctseg.phantom.scanner import scanner_noise

CLASSES = ("liver", "spleen", "kidney_left", "kidney_right", "aorta", "stomach")
SIZE, SLICES, FOV, LOW, HIGH = 64, 32, 380, 230, 470  # pixels, slices, mm

TRAINERS = '''"Short trainings without augmentation, all of one length."
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from ctseg.integrations.nnunet_trainer import TRAINERS


class Short(nnUNetTrainerNoDA):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 120, 1
        super().initialize()


class nnUNetTrainerShort(Short): pass
class nnUNetTrainerPartialShort(TRAINERS["nnUNetTrainerPartial"], Short): pass
class nnUNetTrainerSemiShort(TRAINERS["nnUNetTrainerPartialSemi"], Short): pass
'''


def volume(patient: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "HU and labels [W,H,D] of an abdomen, and their affine."
    body = whole_body([29, patient, 0])
    rng = np.random.default_rng([29, patient])
    turn = np.zeros(len(RAIDIUM54) + 1, np.uint8)
    for new, name in enumerate(CLASSES, 1):
        turn[RAIDIUM54.id(name)] = new
    hu, labels = [], []
    for z in np.linspace(LOW, HIGH, SLICES):
        values, label = render(view(body, "axial", (0, 6, z), FOV, SIZE))
        hu.append(scanner_noise(values, rng))
        labels.append(turn[label])
    step = (HIGH - LOW)/(SLICES - 1)
    affine = np.diag([-FOV/SIZE, -FOV/SIZE, step, 1.])  # columns run to the left, rows to the front
    return np.stack(hu).transpose(2, 1, 0), np.stack(labels).transpose(2, 1, 0), affine


def examined_of(case: int, labelled: int) -> list[str]:
    "All classes for two cases, half of them for other labelled ones, none for the rest."
    if case < 2: return [*CLASSES]
    if case >= labelled: return []
    chosen = np.random.default_rng([7, case]).permutation(len(CLASSES))[:len(CLASSES)//2]
    return [CLASSES[i] for i in sorted(chosen)]


def write(array, affine, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_case(root: Path, name: str, hu, labels, affine, part: str) -> None:
    write(hu.astype(np.int16), affine, root/f"images{part}"/f"{name}_0000.nii.gz")
    write(labels, affine, root/f"labels{part}"/f"{name}.nii.gz")


def describe(root: Path, cases: int, ignore: bool) -> None:
    labels = {"background": 0} | {name: i for i, name in enumerate(CLASSES, 1)}
    if ignore: labels["ignore"] = len(labels)
    text = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (root/"dataset.json").write_text(json.dumps(text, indent=1))


def known_part(labels, examined: list[str]) -> np.ndarray:
    keep = np.array([True] + [name in examined for name in CLASSES])
    return labels*keep[labels]


def make(raw: Path, labelled: int, unlabelled: int, test: int) -> None:
    """Dataset501: as it is, with who examined what; 502: the same labels for nnU-Net's own trainer, labelled cases
    only; 503: ignore where a class is unknown."""
    roots = {n: raw/f"Dataset{n}_phantom" for n in (501, 502, 503)}
    table = {}
    for case in range(labelled + unlabelled):
        hu, labels, affine = volume(case)
        name, examined = f"case_{case:03}", examined_of(case, labelled)
        table[name] = examined
        known = known_part(labels, examined)
        write_case(roots[501], name, hu, known, affine, "Tr")
        if not examined: continue
        write_case(roots[502], name, hu, known, affine, "Tr")
        unsure = np.where(known == 0, np.uint8(len(CLASSES) + 1), known)
        whole = len(examined) == len(CLASSES)
        write_case(roots[503], name, hu, known if whole else unsure, affine, "Tr")
    for case in range(test):
        write_case(raw/"test", f"test_{case:03}", *volume(1000 + case), "Ts")
    describe(roots[501], labelled + unlabelled, False)
    describe(roots[502], labelled, False)
    describe(roots[503], labelled, True)
    (roots[501]/"annotated_labels.json").write_text(json.dumps(table, indent=1))
    (raw/"trainers").mkdir()
    (raw/"trainers"/"short.py").write_text(TRAINERS)


def narrow(preprocessed: Path) -> None:
    "Plans with a quarter of the width or less, and 8 slices a step."
    for path in sorted(preprocessed.glob("*/nnUNetPlans.json")):
        plans = json.loads(path.read_text())
        plans["plans_name"] = "nnUNetPlansTiny"
        for name, configuration in plans["configurations"].items():
            network = configuration.get("architecture", {}).get("arch_kwargs")
            if network: network["features_per_stage"] = [8, 16, 32, 64, 64, 64, 64, 64][:network["n_stages"]]
            if name == "2d": configuration["batch_size"] = 8
        path.with_name("nnUNetPlansTiny.json").write_text(json.dumps(plans, indent=1))


def score(truth: Path, predicted: Path) -> list[float]:
    "Mean Dice of each class over the cases of a folder."
    rows = []
    for path in sorted(truth.glob("*.nii.gz")):
        t, p = (np.asarray(nib.load(f).dataobj) for f in (path, predicted/path.name))
        rows.append([2*((t == c) & (p == c)).sum()/max(1, (t == c).sum() + (p == c).sum())
                     for c in range(1, len(CLASSES) + 1)])
    return np.mean(rows, 0).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "plans", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("predicted", type=Path, nargs="?")
    parser.add_argument("--cases", type=int, nargs=3, default=(10, 10, 6), help="labelled, unlabelled, test")
    given = parser.parse_args()
    if given.what == "make": make(given.folder, *given.cases)
    elif given.what == "plans": narrow(given.folder)
    else: print(json.dumps(dict(zip((*CLASSES,), score(given.folder, given.predicted)))))
