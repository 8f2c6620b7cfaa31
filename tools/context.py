"""Does a network that sees the neighbouring slices segment volumes better?
`python tools/context.py --data FOLDER`
`python tools/context.py --data FOLDER --openkbp CLONE --epochs 5 10`

Makes volumes of the phantom (48 patients, 14 axial slices of 64 x 64 pixels, 5 mm apart, of the belly,
with 14 structures), imports them with a fixed window, and trains the same network for the same steps with
`context` 0 and 1, on one thread. With `--openkbp`, a clone of ababier/open-kbp, it takes real scans instead:
64 slices of each patient that follow each other, cut to 64 x 64 pixels, with a fixed window and all of the
patient's contours: 32 patients of its training set, and 15 of its test set of whom every organ was contoured.
What is kept is `nbs/benchmarks/results/context/EPOCHS-CONTEXT-sSEED.npz` (`openkbp-` before it): the Dice
of every (test slice, class), by argmax and by the run's rule. A result that is there is not made again.
"""
import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import results
import torch

from ctseg.core.anatomy import RAIDIUM54, ClassMap
from ctseg.data.sources import read_slices
from ctseg.inference.rule import Rule
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.neighbours import with_neighbours
from ctseg.io.openkbp import import_openkbp, openkbp_patients, read_openkbp
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, as_slices
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice
from ctseg.phantom.scanner import scanner_noise
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.notes import read_timings

TRAIN, TEST, SLICES, SIDE, STEP = 32, 16, 14, 64, 5.
REAL_SLICES = 64
REAL_TRAIN = (
    1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 24, 25, 26, 27, 28, 29,
    30, 31, 33, 34, 35, 36,
)
REAL_TEST = (
    247, 260, 265, 269, 282, 286, 294, 296, 304, 306, 307, 312, 319, 332, 333,
)
SETTINGS = dict(width=8, batch_size=16, lr=5e-3, folds=8, precision="fp32")
STRUCTURES = (
    "liver", "spleen", "stomach", "pancreas", "gallbladder", "kidney_left", "kidney_right", "aorta",
    "inferior_vena_cava", "duodenum", "colon", "small_bowel", "adrenal_gland_left", "adrenal_gland_right",
)


def phantom_volume(number: int):
    "The scan of one patient, with every structure examined."
    rng = np.random.default_rng([22, number])
    body = whole_body([22, number, 0])
    fov, lowest = rng.uniform(340, 420), rng.uniform(220, 370)
    numbers = np.zeros(256, np.uint8)
    for n, name in enumerate(STRUCTURES, 1): numbers[RAIDIUM54.id(name)] = n
    hu, labels = [], []
    for k in range(SLICES):
        values, label = paint_slice(view(body, "axial", (0, 4, lowest + k*STEP), fov, SIDE))
        hu.append(scanner_noise(values, rng))
        labels.append(numbers[label])
    pixel = fov/SIDE
    affine = np.diag([-pixel, pixel, STEP, 1])  # an image's rows run to the left, its columns to the front
    as_voxels = partial(np.transpose, axes=(1, 2, 0))
    voxels, drawn = as_voxels(np.stack(hu)), as_voxels(np.stack(labels))
    return Volume(voxels.astype(np.float32), affine, drawn, np.ones(len(STRUCTURES), bool))


def make_data(folder: Path):
    "The imported volumes, as a challenge folder."
    cases = [
        Case(f"phantom {n}", partial(phantom_volume, n), n, split="train" if n < TRAIN else "test")
        for n in range(TRAIN + TEST)
    ]
    write_volumes(cases, folder, ClassMap.from_names(STRUCTURES), Slicing(window=(40., 400.)))


def chosen_slices(folder: Path) -> list[list]:
    "Rows of a choice for `import openkbp`: slices downward from the topmost one with a contour."
    volume = read_openkbp(folder)
    drawn = as_slices(volume.labels, volume.affine).any((1, 2)).nonzero()[0]
    examined = [int(id) for id in volume.known.nonzero()[0] + 1]
    start = max(0, int(drawn[-1]) + 1 - REAL_SLICES)
    return [[int(folder.name[3:]), start + k, 40., 400., examined] for k in range(REAL_SLICES)]


def make_real_data(folder: Path, clone: Path):
    "Patients of OpenKBP, as a challenge folder of slices that follow each other."
    patients = openkbp_patients(clone)
    choice = {"size": SIDE, "train": [], "test": []}
    for split, numbers in (("train", REAL_TRAIN), ("test", REAL_TEST)):
        for number in numbers: choice[split] += chosen_slices(patients[number])
    with tempfile.TemporaryDirectory() as tmp:
        like = Path(tmp)/"choice.json"
        like.write_text(json.dumps(choice))
        import_openkbp(clone, folder, like=like)


def measure(data: Path, runs: Path, epochs: int, context: int, seed: int, real: bool = False):
    "Train, score the test slices, keep the tables."
    target = results.RESULTS/"context"/f"{'openkbp-'*real}{epochs}-{context}-s{seed}.npz"
    if target.exists(): return
    recipe = get_recipe("marginal-log").change(context=context, epochs=epochs, **SETTINGS)
    run = fit(data, recipe, runs/target.stem, seed, resume=True, device="cpu", progress=False)
    test = with_neighbours(read_slices(data, "test"), data, "test", context)
    predictor = load_predictor(run.folder, "cpu")
    masks = predict_masks(predictor, test.seen(context), [Rule(), predictor.rule])
    tables = [dice_table(m, test.masks, len(test.classes)).astype(np.float32) for m in masks]
    place = np.arange(len(test)) % (REAL_SLICES if real else SLICES)
    facts = dict(context=context, epochs=epochs, seed=seed, settings=SETTINGS)
    facts["seconds"] = round(run_seconds(run))
    results.write_arrays(
        target, argmax=tables[0], rule=tables[1], groups=test.groups, place=place,
        classes=np.array(test.classes.names), facts=json.dumps(facts))
    print(target.stem, [round(mean_dice(table), 4) for table in tables], flush=True)


def run_seconds(run: Run) -> float:
    "How long the epochs of a run took."
    return sum(row["seconds"] for row in read_timings(run))


def main():
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the volumes; made if not there")
    parser.add_argument("--runs", type=Path, default=results.ROOT/"runs"/"context")
    parser.add_argument("--epochs", type=int, nargs="+", default=[12, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--openkbp", type=Path, help="a clone of ababier/open-kbp: real scans instead")
    args = parser.parse_args()
    real = args.openkbp is not None
    if real and not args.data.exists(): make_real_data(args.data, args.openkbp)
    if not args.data.exists(): make_data(args.data)
    for epochs in args.epochs:
        for seed in args.seeds:
            for context in (0, 1):
                measure(args.data, args.runs, epochs, context, seed, real)


if __name__ == "__main__": main()
