"""A small comparison of nnU-Net with and without partial labels, on volumes made of the phantom.

    python tools/nnunet_trial.py make HOME           HOME/raw/Dataset501…503_phantom, HOME/test
    export nnUNet_raw=HOME/raw nnUNet_preprocessed=HOME/preprocessed nnUNet_results=HOME/results
    nnUNetv2_plan_and_preprocess -d 501 502 503 -c 2d
    python tools/nnunet_trial.py plans HOME          nnUNetPlansTiny.json beside each plan: a narrow network
    python tools/nnunet_trial.py train HOME          four trainings from each seed, the unfinished ones
    python tools/nnunet_trial.py own HOME            ctseg's own loop on the slices of the same volumes
    python tools/nnunet_trial.py collect HOME --out nbs/benchmarks/results/nnunet.csv

`nbs/benchmarks/nnunet.ipynb` says what came out.
"""
import argparse
import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice
from ctseg.phantom.scanner import scanner_noise

CLASSES = ("liver", "spleen", "kidney_left", "kidney_right", "aorta", "stomach")
SIZE, SLICES, FOV, LOW, HIGH = 64, 32, 380, 230, 470  # pixels, slices, mm

TRAININGS = {  # data set, trainer of ctseg
    "background": (502, None),
    "ignore": (503, None),
    "partial": (501, "nnUNetTrainerPartial"),
    "semi": (501, "nnUNetTrainerPartialSemi"),
    "semi-labelled": (501, "nnUNetTrainerPartialSemi"),  # the cases without labels are left out
}
OWN = {  # recipe of ctseg, settings; about the processor time of 24 epochs of the two trainers
    "own": ("marginal-log", ["model.width=8", "epochs=24"]),
    "own-semi": ("ctseg", ["model.width=8", "epochs=16", "unlabelled_passes=0"]),
}
SCORES = ["case", "class", "dice"]


def volume(patient: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "HU and labels [W,H,D] of an abdomen, and their affine."
    body = whole_body([29, patient, 0])
    rng = np.random.default_rng([29, patient])
    turn = np.zeros(len(RAIDIUM54) + 1, np.uint8)
    for new, name in enumerate(CLASSES, 1):
        turn[RAIDIUM54.id(name)] = new
    hu, labels = [], []
    for z in np.linspace(LOW, HIGH, SLICES):
        values, label = paint_slice(view(body, "axial", (0, 6, z), FOV, SIZE))
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


def make(home: Path, labelled: int, unlabelled: int, test: int) -> None:
    """Dataset501: as it is, with who examined what; 502: the same labels for nnU-Net's own trainer, without the
    unlabelled cases; 503: ignore where a class is unknown."""
    roots = {n: home/"raw"/f"Dataset{n}_phantom" for n in (501, 502, 503)}
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
        write_case(home/"test", f"test_{case:03}", *volume(1000 + case), "Ts")
    describe(roots[501], labelled + unlabelled, False)
    describe(roots[502], labelled, False)
    describe(roots[503], labelled, True)
    (roots[501]/"annotated_labels.json").write_text(json.dumps(table, indent=1))


def narrow(home: Path) -> None:
    "Plans of four levels with one convolution each, a quarter of the width or less, and 6 slices a step."
    widths = [8, 16, 32, 32]
    for path in sorted((home/"preprocessed").glob("*/nnUNetPlans.json")):
        plans = json.loads(path.read_text())
        plans["plans_name"] = "nnUNetPlansTiny"
        configuration = plans["configurations"]["2d"]
        configuration["batch_size"] = 6
        network = configuration["architecture"]["arch_kwargs"]
        levels = len(widths)
        network |= {"n_stages": levels, "features_per_stage": widths, "n_conv_per_stage": [1]*levels,
                    "n_conv_per_stage_decoder": [1]*(levels - 1)}
        for name in ("kernel_sizes", "strides"):
            network[name] = network[name][:levels]
        plans["configurations"] = {"2d": configuration}
        path.with_name("nnUNetPlansTiny.json").write_text(json.dumps(plans, indent=1))


def short_trainer(name: str | None, epochs: int, iterations: int, rate: float, seed: int) -> type:
    "A trainer without augmentation, with Adam, whose random numbers are fixed; cases are kept in memory."
    import torch
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

    from ctseg.integrations.nnunet_trainer import TRAINERS

    class Short(nnUNetTrainerNoDA):
        def initialize(self):
            self.num_epochs, self.num_iterations_per_epoch = epochs, iterations
            self.num_val_iterations_per_epoch = 6
            np.random.seed(seed)
            torch.manual_seed(seed)
            super().initialize()
            def draw_nothing(folder): pass
            self.logger.plot_progress_png = draw_nothing

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.network.parameters(), rate, weight_decay=3e-5, amsgrad=True)
            return optimizer, PolyLRScheduler(optimizer, rate, epochs)

        def get_tr_and_val_datasets(self):
            datasets = super().get_tr_and_val_datasets()
            for dataset in datasets: keep_in_memory(dataset)
            return datasets

        def plot_network_architecture(self): pass

    parts = (TRAINERS[name], Short) if name else (Short,)
    return type(name or "nnUNetTrainerNoDA", parts, {})  # a name that nnU-Net finds when it predicts


def without_unlabelled(kind: type) -> type:
    "The same trainer, which never sees a case without labels."
    def training_cases(self, cases):
        return kind.training_cases(self, self.examined.labelled(cases))
    return type(kind.__name__, (kind,), {"training_cases": training_cases})


def keep_in_memory(dataset) -> None:
    "Read each case of nnU-Net once."
    read, kept = dataset.load_case, {}

    def load_case(case):
        if case not in kept:
            image, labels, *rest = read(case)
            kept[case] = (image[:], labels[:], *rest)
        return kept[case]

    dataset.load_case = load_case


def train(home: Path, what: str, seed: int, epochs: int, iterations: int, rate: float) -> None:
    "One training, and the Dice of each class and test case that nnU-Net's prediction gets with it."
    run = f"{what}_{seed}_{epochs}"
    if (home/"scores"/f"{run}.csv").exists(): return
    begin = time.process_time()
    for name in ("raw", "preprocessed"):
        os.environ[f"nnUNet_{name}"] = str(home/name)
    os.environ["nnUNet_results"] = str(home/"results"/run)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    number, name = TRAININGS[what]
    prepared = home/"preprocessed"/f"Dataset{number}_phantom"
    plans = json.loads((prepared/"nnUNetPlansTiny.json").read_text()) | {"continue_training": False}
    dataset = json.loads((prepared/"dataset.json").read_text())
    cpu = torch.device("cpu")
    kind = short_trainer(name, epochs, iterations, rate, seed)
    if what == "semi-labelled": kind = without_unlabelled(kind)
    trainer = kind(plans, "2d", "all", dataset, device=cpu)
    if not (Path(trainer.output_folder)/"checkpoint_final.pth").exists():
        trainer.run_training()
    predictor = nnUNetPredictor(use_mirroring=False, device=cpu, allow_tqdm=False)
    trained = trainer.output_folder_base
    predictor.initialize_from_trained_model_folder(trained, ("all",), "checkpoint_final.pth")
    predicted = home/"predicted"/run
    predicted.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(home/"test"/"imagesTs"), str(predicted))
    write_scores(home, what, seed, epochs, time.process_time() - begin)


def train_own(home: Path, what: str, seed: int) -> None:
    "One training of ctseg's own loop on slices, and the Dice of its volumes."
    import ctseg
    from ctseg.integrations.nnunet_import import import_nnunet
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.recipe import apply_settings
    from ctseg.segmentation import segment

    recipe = apply_settings(get_recipe(OWN[what][0]), OWN[what][1])
    epochs = recipe.schedule.epochs
    name = f"{what}_{seed}_{epochs}"
    if (home/"scores"/f"{name}.csv").exists(): return
    begin = time.process_time()
    data = home/"own"
    if not data.exists(): import_nnunet(home/"raw"/"Dataset501_phantom", data)
    run = ctseg.fit(data, recipe, home/"results"/name, seed, device="cpu", progress=False)
    segment(run.folder, home/"test"/"imagesTs", home/"predicted"/name, device="cpu")
    write_scores(home, what, seed, epochs, time.process_time() - begin)


def write_scores(home: Path, what: str, seed: int, epochs: int, seconds: float) -> None:
    "The Dice of predicted volumes, and the processor time of the training and its prediction."
    name = f"{what}_{seed}_{epochs}"
    table = pd.DataFrame(score(home/"test"/"labelsTs", home/"predicted"/name), columns=SCORES).round(4)
    table = table.assign(training=what, seed=seed, epochs=epochs, seconds=round(seconds))
    (home/"scores").mkdir(exist_ok=True)
    table.to_csv(home/"scores"/f"{name}.csv", index=False)


def score(truth: Path, predicted: Path) -> list[tuple]:
    "Case, class and Dice over the cases of a folder."
    rows = []
    for path in sorted(truth.glob("*.nii.gz")):
        (found,) = predicted.glob(path.name.replace(".nii.gz", "*.nii.gz"))
        t, p = (np.asarray(nib.load(f).dataobj) for f in (path, found))
        for c, name in enumerate(CLASSES, 1):
            total = (t == c).sum() + (p == c).sum()
            rows.append((path.name.split(".")[0], name, 2*((t == c) & (p == c)).sum()/max(1, total)))
    return rows


def collect(home: Path, out: Path) -> None:
    "The scores of all trainings in one table."
    parts = [pd.read_csv(path) for path in sorted((home/"scores").glob("*.csv"))]
    pd.concat(parts).to_csv(out, index=False)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("what", choices=("make", "plans", "train", "own", "collect"))
    parser.add_argument("home", type=Path)
    parser.add_argument("--cases", type=int, nargs=3, default=(10, 10, 6), help="labelled, unlabelled, test")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=[*TRAININGS])
    parser.add_argument("--own", nargs="+", choices=OWN, default=[*OWN])
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=75, help="steps an epoch")
    parser.add_argument("--rate", type=float, default=3e-3, help="of Adam")
    parser.add_argument("--out", type=Path, default=Path("nnunet.csv"))
    given = parser.parse_args()
    if given.what == "make": make(given.home, *given.cases)
    elif given.what == "plans": narrow(given.home)
    elif given.what == "collect": collect(given.home, given.out)
    elif given.what == "own":
        for seed in given.seeds:
            for what in given.own: train_own(given.home, what, seed)
    else:
        for seed in given.seeds:
            for what in given.trainings:
                train(given.home, what, seed, given.epochs, given.iterations, given.rate)


if __name__ == "__main__": main()
